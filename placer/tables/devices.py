"""Which GPU has most of a token's experts, layer by layer: what a scheduler looks up."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray, frozen
from placer.errors import RoutingError
from placer.placement import Placement
from placer.tables.counts import TokenTable, token_table
from placer.tables.vocabulary import Vocabulary
from placer.trace import Trace

UInt8 = npt.NDArray[np.uint8]
CERTAIN = np.iinfo(np.uint8).max  # a confidence of 1
PARTS = 2520  # of an activation: whole numbers for each of up to ten replicas
# Scores are compared in finer steps than confidences are kept in, and round alike in any order.
_STEPS = 2**20
MOST_CELLS = 2**25  # layers x gpus**3: a quarter of a GB


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTables:
    """What a scheduler looks up; all for one placement.

    near:            [rows, gpus] share of a token's activations on each GPU, mean over layers, to
                     float16's precision
    device:          [layers, rows] the GPU with most of a token's activations; two bytes only
                     where there are more than 256 GPUs
    confidence:      [layers, rows] T_p, the share that it has, in 1 / ``CERTAIN``
    next_device:     [layers, gpus, gpus] the same for tokens that were on these two GPUs in the
                     two layers before, whatever the token (2-gram)
    next_confidence: [layers, gpus, gpus] A_p; 0 in the first two layers, for what never came, and
                     everywhere if there are too many GPUs to count it
    """

    vocabulary: Vocabulary
    near: npt.NDArray[np.float32]
    device: IntArray
    confidence: UInt8
    next_device: IntArray
    next_confidence: UInt8

    def __post_init__(self) -> None:
        for name in ("near", "device", "confidence", "next_device", "next_confidence"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def request_scores(self, tokens: IntArray, seq_lens: IntArray) -> FloatArray:
        """[sequences, gpus] device scores summed over each request's tokens.

        tokens:   [tokens] identities, sequence after sequence
        seq_lens: [sequences]
        """
        near = self.near[self.vocabulary.rows(tokens)].astype(np.float64)
        return np.add.reduceat(near, np.cumsum(seq_lens) - seq_lens, axis=0)

    def guess(self, tokens: IntArray, layer: int, before: IntArray) -> tuple[IntArray, UInt8]:
        """[tokens] the GPU for each token at a layer: its own where T_p > A_p, else the 2-gram's;
        and the confidence, the larger of the two.

        before: [tokens, 2] the GPUs of the two layers before, the earlier first; of no matter in
                the first two layers
        """
        rows = self.vocabulary.rows(tokens)
        pair = (layer, before[:, 0], before[:, 1])
        own, others = self.confidence[layer, rows], self.next_confidence[pair]
        device = np.where(own > others, self.device[layer, rows], self.next_device[pair])
        return device, np.maximum(own, others)


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """Counts of the GPUs where tokens' experts were, after those of the two layers before.

    parts: [layers, gpus, gpus, gpus] of activations, in 1 / ``PARTS``; none in the first two
        layers; None where there are too many GPUs for memory to hold them
    """

    placement: Placement
    parts: IntArray | None

    def __post_init__(self) -> None:
        if self.parts is not None:
            object.__setattr__(self, "parts", frozen(self.parts))

    def __add__(self, other: "Chains") -> "Chains":
        if self.placement.digest != other.placement.digest:
            raise RoutingError(
                f"counts for plan {self.placement.digest:.19}... and for plan "
                f"{other.placement.digest:.19}... do not add up: count both for one"
            )
        if self.parts is None or other.parts is None:
            return self
        return Chains(self.placement, self.parts + other.parts)


def chains(trace: Trace, placement: Placement) -> Chains:
    """gpus**3 numbers a layer. Raises RoutingError for another model's trace."""
    check_fits(trace.layers, trace.experts, placement)
    gpus = placement.gpus
    if trace.layers * gpus**3 > MOST_CELLS:
        return Chains(placement, None)
    parts = np.zeros((trace.layers, gpus, gpus, gpus), dtype=np.int64)
    pair = np.zeros(trace.tokens, dtype=np.int64)
    for layer, served in enumerate(_served(trace, placement)):
        if layer >= 2:
            sums = [np.bincount(pair, part, gpus * gpus) for part in served.T]
            parts[layer] = np.stack(sums, axis=1).reshape(gpus, gpus, gpus)
        pair = pair % gpus * gpus + served.argmax(axis=1)
    return Chains(placement, parts)


def visited(trace: Trace, placement: Placement) -> IntArray:
    """[layers, tokens] the GPU that serves most of each token's activations."""
    return np.stack([served.argmax(axis=1) for served in _served(trace, placement)])


def device_tables(
    trace: Trace, placement: Placement, embedding: FloatArray | None = None
) -> DeviceTables:
    """The tables of ``placement`` for a scheduler, from the routing in ``trace``; ``embedding`` is
    as for ``token_table``. Raises RoutingError for another model's trace."""
    found = chains(trace, placement)
    return devices_of(token_table(trace, embedding), found)


def devices_of(table: TokenTable, chains: Chains) -> DeviceTables:
    """The tables of the chains' placement, from counts of tokens.

    A GPU's score is the share of a token's activations that it serves, replicas sharing evenly;
    T_p and A_p are both the best GPU's, so that the more confident table is the one that expects
    more activations to be local (ours).

    Cost: rows * layers * experts * gpus multiplications.
    """
    placement = chains.placement
    layers, rows, experts = table.counts.shape
    check_fits(layers, experts, placement)
    whole = (table.times * (table.top_k * PARTS))[:, None]
    near = np.zeros((rows, placement.gpus))
    device = np.empty((layers, rows), dtype=np.min_scalar_type(placement.gpus - 1))
    confidence = np.empty((layers, rows), dtype=np.uint8)
    for layer, share in enumerate(_shares(placement)):
        score = table.counts[layer].astype(np.float64) @ share / whole
        near += score
        device[layer], confidence[layer] = _best(score)
    pairs = (layers, placement.gpus, placement.gpus)
    next_device: IntArray = np.zeros(pairs, dtype=np.int64)
    next_confidence = np.zeros(pairs, dtype=np.uint8)
    if chains.parts is not None:
        total = chains.parts.sum(axis=-1, keepdims=True)
        next_device, next_confidence = _best(chains.parts / np.maximum(total, 1))
    return DeviceTables(
        table.vocabulary,
        (near / layers).astype(np.float16).astype(np.float32),
        device,
        confidence,
        next_device.astype(device.dtype),
        next_confidence,
    )


def check_fits(layers: int, experts: int, placement: Placement) -> None:
    """Raises RoutingError if routing of so many is not that of the placed model."""
    if (layers, experts) != (placement.layers, placement.experts):
        raise RoutingError(
            f"the trace has {layers} layers x {experts} experts but the placement "
            f"{placement.layers} layers x {placement.experts} experts: give a trace of the model "
            "that was placed"
        )


def _shares(placement: Placement) -> FloatArray:
    """[layers, experts, gpus] of an expert's activations that each GPU serves, in whole 1/PARTS."""
    copies = placement.copies * PARTS
    return np.rint(copies / np.maximum(placement.replicas, 1)[:, :, None])


def _served(trace: Trace, placement: Placement) -> Iterator[FloatArray]:
    """Of each layer: [tokens, gpus] parts of each token's activations."""
    for layer, share in enumerate(_shares(placement)):
        yield share[trace.expert_ids[:, layer]].sum(axis=1)


def _best(score: FloatArray) -> tuple[IntArray, UInt8]:
    """Of scores [..., gpus]: the best GPU, and its score as a confidence."""
    fine = np.rint(score * _STEPS).astype(np.int64)
    best = fine.max(axis=-1)
    confidence = (best * CERTAIN + _STEPS // 2) // _STEPS
    return fine.argmax(axis=-1), confidence.clip(max=CERTAIN).astype(np.uint8)
