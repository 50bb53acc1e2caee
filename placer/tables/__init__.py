"""Token tables (Speculative MoE, arXiv 2503.04398): where a token's experts are, before it runs.

Most of a token's routing follows from the token itself, so that counting it ahead tells the
scheduler which GPU should own a request (data-parallel attention), or a token at a layer
(tensor-parallel attention). A wrong guess costs ordinary traffic, never a wrong answer.

``token_table`` counts experts by token. ``device_tables`` turns a trace and a placement into what a
scheduler looks up, small enough to stand beside an engine: two int16 a token and layer, the GPU and
how sure that is, and a float32 a token and GPU.
"""

from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray, frozen
from placer.errors import RoutingError
from placer.placement import Placement
from placer.trace import Trace

Int16 = npt.NDArray[np.int16]
CERTAIN = np.iinfo(np.int16).max  # a confidence of 1
NEIGHBOURS_AT_A_TIME = 1024  # bounds the distances held in memory


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Which row of a table belongs to a token. The last row is for tokens that are not known.

    tokens: [known] identities in ascending order
    row:    [known] the row of each
    """

    tokens: IntArray
    row: IntArray

    def __post_init__(self) -> None:
        for name in ("tokens", "row"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def rows(self, tokens: IntArray) -> IntArray:
        """[tokens] the row of each; -1, which is the last one, for those not known."""
        at = np.searchsorted(self.tokens, tokens).clip(max=len(self.tokens) - 1)
        return np.where(self.tokens[at] == tokens, self.row[at], -1)


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """T[l][token, expert]: how often each token used each expert.

    times:  [rows] occurrences of each token
    counts: [layers, rows, experts] those that were routed to each expert

    The last row is all tokens together, each layer's prior.
    """

    vocabulary: Vocabulary
    times: IntArray
    counts: IntArray
    top_k: int

    def __post_init__(self) -> None:
        for name in ("times", "counts"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def probability(self, tokens: IntArray, layer: int) -> FloatArray:
        """[tokens, experts] Pr(expert | token), which is also its confidence C_p; sums to top_k."""
        rows = self.vocabulary.rows(tokens)
        return self.counts[layer, rows] / self.times[rows, None]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTables:
    """What a scheduler looks up; all for one placement.

    near:            [rows, gpus] share of a token's activations on each GPU, mean over layers
    device:          [layers, rows] the GPU with most of a token's activations
    confidence:      [layers, rows] T_p, the share that it has, in 1 / ``CERTAIN``
    next_device:     [layers, gpus, gpus] the same for tokens that were on these two GPUs in the
                     two layers before, whatever the token (2-gram)
    next_confidence: [layers, gpus, gpus] A_p; 0 in the first two layers, and for what never came
    """

    vocabulary: Vocabulary
    near: npt.NDArray[np.float32]
    device: Int16
    confidence: Int16
    next_device: Int16
    next_confidence: Int16

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

    def guess(self, tokens: IntArray, layer: int, before: IntArray) -> Int16:
        """[tokens] the GPU for each token at a layer: its own where T_p > A_p, else the 2-gram's.

        before: [tokens, 2] the GPUs of the two layers before, the earlier first; of no matter in
                the first two layers
        """
        rows = self.vocabulary.rows(tokens)
        pair = (layer, before[:, 0], before[:, 1])
        sure = self.confidence[layer, rows] > self.next_confidence[pair]
        return np.where(sure, self.device[layer, rows], self.next_device[pair])


def token_identity(trace: Trace) -> IntArray:
    """[tokens] what each token is: its vocabulary id.

    Where a trace has none, the set of its experts at the first layer stands in, as its rank among
    all sets of that size (ours). The first router sees little more than the token itself, so that
    equal tokens mostly get equal sets; different tokens may share one.
    """
    if trace.token_ids is not None:
        return trace.token_ids.astype(np.int64)
    experts = np.sort(trace.expert_ids[:, 0], axis=1)
    # Combinatorial number system, modulo 2**63: the largest models' sets do not all fit.
    rank = [
        [comb(expert, place + 1) % 2**63 for place in range(trace.top_k)]
        for expert in range(trace.experts)
    ]
    terms = np.array(rank, dtype=np.uint64)[experts, np.arange(trace.top_k)]
    return (terms.sum(axis=1) % np.uint64(2**63)).astype(np.int64)


def token_table(trace: Trace, embedding: FloatArray | None = None) -> TokenTable:
    """The experts of each token in ``trace``.

    embedding: [vocabulary, dimensions] the model's token embedding, if known: vocabulary ids that
        the trace lacks then take the row of their nearest neighbour (Euclidean) that it has

    Memory: layers * distinct tokens * experts counts, of 2 bytes or more.
    """
    tokens, kind = np.unique(token_identity(trace), return_inverse=True)
    kinds, experts = len(tokens), trace.experts
    times = np.bincount(kind, minlength=kinds)
    counts = np.empty(
        (trace.layers, kinds + 1, experts),
        dtype=np.promote_types(np.min_scalar_type(trace.tokens), np.uint16),
    )
    for layer in range(trace.layers):
        cell = kind[:, None] * experts + trace.expert_ids[:, layer]
        found = np.bincount(cell.ravel(), minlength=kinds * experts).reshape(kinds, experts)
        counts[layer, :-1], counts[layer, -1] = found, found.sum(axis=0)
    vocabulary = Vocabulary(tokens, np.arange(kinds))
    if embedding is not None:
        vocabulary = _with_neighbours(vocabulary, embedding)
    return TokenTable(vocabulary, np.append(times, trace.tokens), counts, trace.top_k)


def device_tables(
    trace: Trace, placement: Placement, embedding: FloatArray | None = None
) -> DeviceTables:
    """The tables of ``placement`` for a scheduler, from the routing in ``trace``.

    A GPU's score is the share of a token's activations that it serves, replicas sharing evenly;
    T_p and A_p are both the best GPU's, so that the more confident table is the one that expects
    more activations to be local (ours). ``embedding`` is as for ``token_table``.

    Cost: rows * layers * experts * gpus multiplications and gpus**3 numbers a layer.
    """
    if (trace.layers, trace.experts) != (placement.layers, placement.experts):
        raise RoutingError(
            f"the trace has {trace.dims} but the placement {placement.layers} layers x "
            f"{placement.experts} experts: give a trace of the model that was placed"
        )
    table = token_table(trace, embedding)
    share = placement.copies / np.maximum(placement.replicas, 1)[:, :, None]
    score = np.stack([c.astype(np.float64) @ s for c, s in zip(table.counts, share, strict=True)])
    score /= (table.times * table.top_k)[:, None]
    device, confidence = _best(score)
    next_device, next_confidence = _bigram(trace, share)
    near = score.mean(axis=0).astype(np.float32)
    return DeviceTables(table.vocabulary, near, device, confidence, next_device, next_confidence)


def local_activation_rate(trace: Trace, placement: Placement, homes: IntArray) -> float:
    """LAR: share of (token, layer, k) activations that the token's home GPU can serve.

    homes: [tokens] GPUs, or [tokens, layers] where tokens change GPUs between layers
    """
    held = placement.copies > 0
    home = np.broadcast_to(homes.reshape(trace.tokens, -1), (trace.tokens, trace.layers))
    local = sum(
        int(held[layer, trace.expert_ids[:, layer], home[:, layer, None]].sum())
        for layer in range(trace.layers)
    )
    return local / trace.expert_ids.size


def _best(score: FloatArray) -> tuple[Int16, Int16]:
    """Of scores [..., gpus]: the best GPU, and its score as a confidence."""
    confidence = np.rint(score * CERTAIN).astype(np.int16)
    return confidence.argmax(axis=-1).astype(np.int16), confidence.max(axis=-1)


def _bigram(trace: Trace, share: FloatArray) -> tuple[Int16, Int16]:
    """Best GPU and confidence [layers, gpus, gpus] by the GPUs of the two layers before.

    share: [layers, experts, gpus] of each expert's tokens, served on each GPU
    """
    layers, _, gpus = share.shape
    device = np.zeros((layers, gpus, gpus), dtype=np.int16)
    confidence = np.zeros_like(device)
    pair = np.zeros(trace.tokens, dtype=np.intp)
    for layer in range(layers):
        served = share[layer][trace.expert_ids[:, layer]].sum(axis=1) / trace.top_k
        if layer >= 2:
            sums = [np.bincount(pair, part, gpus * gpus) for part in served.T]
            times = np.bincount(pair, minlength=gpus * gpus)
            score = (np.stack(sums, axis=1) / np.maximum(times, 1)[:, None]).reshape(gpus, gpus, -1)
            device[layer], confidence[layer] = _best(score)
        pair = pair % gpus * gpus + served.argmax(axis=1)
    return device, confidence


def _with_neighbours(seen: Vocabulary, embedding: FloatArray) -> Vocabulary:
    """Every id of the embedding, those not seen with the row of the nearest one that was."""
    low, high = int(seen.tokens[0]), int(seen.tokens[-1])
    if low < 0 or high >= len(embedding):
        raise RoutingError(
            f"token id {low if low < 0 else high} is outside the embedding's {len(embedding)} rows"
            ": give the embedding of the model that was traced"
        )
    known = embedding[seen.tokens].astype(np.float64)
    row = np.empty(len(embedding), dtype=np.intp)
    for start in range(0, len(embedding), NEIGHBOURS_AT_A_TIME):
        some = embedding[start : start + NEIGHBOURS_AT_A_TIME].astype(np.float64)
        # Squared distance, without the part that is the same for all neighbours.
        row[start : start + len(some)] = ((known**2).sum(axis=1) - 2 * some @ known.T).argmin(
            axis=1
        )
    row[seen.tokens] = seen.row
    return Vocabulary(np.arange(len(embedding)), row)
