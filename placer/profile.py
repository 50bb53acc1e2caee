"""Profile: what traffic did to the experts, summed over tokens; small, mergeable, with its size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from placer import clusters, spread
from placer.arrays import FloatArray, IntArray, frozen
from placer.clusters import Clusters
from placer.consistency import check_load
from placer.errors import RoutingError
from placer.pace import Pace, elapsed, merged
from placer.spread import FEWEST_BLOCKS, Noise, Spread, sampling_noise
from placer.trace import PHASES, Trace, added

TOKENS_AT_A_TIME = 16_384  # keeps one layer's columns in the cache
BLOCK_TOKENS = 64  # shorter sequences are taken together: fewer blocks, the same noise


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Counts of tokens.

    load:         [layers, experts] tokens routed to each expert
    transitions:  [layers - 1, experts, experts] tokens that used i at a layer and j at the next,
                  each pair of a token's experts weighing 1 / top_k^2, so that a token adds one to
                  each transition (ExFlow's affinity, unnormalised)
    coactivation: [layers, experts, experts] tokens that used both i and j; symmetric, zero
                  diagonal
    tokens, sequences: how much traffic this is (no sequences: unknown how many); the sampling
                  noise follows from tokens
    window_s:     seconds of one engine's serving that it was recorded over, if known: those of
                  engines side by side add up
    pace:         how the engine's steps went, if somebody measured them
    spread:       how it varies between sequences, if they were told apart
    known:        its sampling noise, if the counts do not say it: only a part of the traffic was
                  recorded (guard.py)
    unknown:      variance of ``load / tokens`` beyond that, of the part that was not
    sampled:      layers may hold less than tokens x top_k: counters saw a part of the choices
    clusters:     which requests' tokens used which experts, of all requests or of some
    notes:        what a reader left out or took otherwise, and of how many tokens

    A layer's load is tokens x top_k, and none if it never ran. Counters that know loads alone
    leave ``transitions`` and ``coactivation`` out: fan-out and hops are then unknown.
    """

    load: FloatArray
    top_k: int
    tokens: float
    sequences: int
    transitions: FloatArray | None = None
    coactivation: FloatArray | None = None
    phase: str = "mixed"
    window_s: float | None = None
    spread: Spread | None = None
    known: Noise | None = None
    unknown: Noise | None = None
    pace: Pace | None = None
    sampled: bool = False
    clusters: Clusters | None = None
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.load.ndim != 2 or 0 in self.load.shape:
            raise RoutingError(f"load is {list(self.load.shape)}: it must be [layers, experts]")
        layers, experts = self.load.shape
        if self.spread is not None and (
            self.spread.products.shape != (layers, experts, experts)
            or self.spread.lengths.shape != (layers, experts)
        ):
            raise RoutingError(
                f"spread is {list(self.spread.products.shape)} and "
                f"{list(self.spread.lengths.shape)}: it must be {[layers, experts, experts]} and "
                f"{[layers, experts]}"
            )
        if self.spread is not None and not self.spread.is_possible:
            raise RoutingError("spread holds NaN, infinity or negative sums: record again")
        if self.clusters is not None and self.clusters.load.shape[1:] != (layers, experts):
            raise RoutingError(f"clusters must have loads [clusters, {layers}, {experts}]")
        if not 1 <= self.top_k <= experts:
            raise RoutingError(f"top_k {self.top_k} is outside 1..{experts}")
        if self.phase not in PHASES:
            raise RoutingError(f"phase {self.phase!r}: use one of {', '.join(PHASES)}")
        for name, shape in (
            ("load", self.load.shape),
            ("transitions", (layers - 1, experts, experts)),
            ("coactivation", (layers, experts, experts)),
        ):
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape:
                raise RoutingError(f"{name} is {list(array.shape)}: it must be {list(shape)}")
            if not np.isfinite(array).all() or array.min(initial=0) < 0:
                raise RoutingError(f"{name} holds NaN, infinity or negative counts: record again")
            object.__setattr__(self, name, frozen(np.asarray(array, dtype=np.float64)))
        if not self.load.any() or not self.tokens > 0:
            raise RoutingError("an empty profile (no tokens): record some traffic first")
        check_load(self.load, self.tokens, self.top_k, self.sampled)

    @property
    def noise(self) -> Noise:
        """Of its sample (spread.py), or what is known of it otherwise."""
        return self.known or _noise(self)

    @property
    def variety(self) -> float | None:
        """How much blocks of sequences differ: the rms of their loads' differences over the rms of
        the loads, less what drawing tokens alone would give; of the layers that ran. None if they
        were not told apart."""
        if self.spread is None or self.spread.blocks < FEWEST_BLOCKS:
            return None
        ran = self.load.any(axis=1)
        share = self.load[ran] / self.tokens
        drawn = share * (1 - share) / self.tokens
        between = (self.noise.variance[ran] - drawn).sum(axis=1) * self.spread.blocks
        return float(np.sqrt(np.maximum(between / (share**2).sum(axis=1), 0).mean()))

    @property
    def layers(self) -> int:
        return self.load.shape[0]

    @property
    def experts(self) -> int:
        return self.load.shape[1]


@lru_cache(maxsize=2)  # asked for again by all who judge a plan
def _noise(profile: Profile) -> Noise:
    return sampling_noise(profile.load, profile.tokens, profile.spread)


def of_trace(trace: Trace, clustered: bool = False) -> Profile:
    """Everything that a trace says; with the clusters of its requests only if asked for."""
    return of_chunks([trace], clustered)


def of_chunks(chunks: Iterable[Trace], clustered: bool = False) -> Profile:
    """The profile of traces that together are one recording, read one after another.

    Cost: 2 * top_k^2 counts a token and layer; memory does not grow with tokens.
    """
    counts: _Counts | None = None
    known: Clusters | None = None
    for chunk in chunks:
        counts = counts or _Counts(chunk)
        counts.add(chunk)
        if clustered:
            known = clusters.merge([*([known] if known else []), clusters.of_requests(chunk)])
    if counts is None:
        raise RoutingError("an empty trace: record some tokens first")
    return replace(counts.profile(), clusters=known) if known else counts.profile()


def merge(profiles: Sequence[Profile]) -> Profile:
    """The sum of profiles of one model. Raises RoutingError if their shapes disagree."""
    first = profiles[0]
    for other in profiles[1:]:
        if (other.load.shape, other.top_k) != (first.load.shape, first.top_k):
            raise RoutingError(
                f"the profiles disagree: {list(first.load.shape)} top-{first.top_k} and "
                f"{list(other.load.shape)} top-{other.top_k} [layers, experts]"
                ": give profiles of one model only"
            )

    def total(name: Literal["load", "transitions", "coactivation"]) -> FloatArray | None:
        parts = [getattr(profile, name) for profile in profiles]
        return None if any(part is None for part in parts) else np.sum(parts, axis=0)

    load = total("load")
    assert load is not None  # every profile has one
    phases = {profile.phase for profile in profiles}
    return Profile(
        load=load,
        top_k=first.top_k,
        tokens=sum(profile.tokens for profile in profiles),
        sequences=sum(profile.sequences for profile in profiles),
        transitions=total("transitions"),
        coactivation=total("coactivation"),
        phase=phases.pop() if len(phases) == 1 else "mixed",
        window_s=elapsed((profile.phase, profile.window_s) for profile in profiles),
        spread=spread.merge([profile.spread for profile in profiles]),
        pace=merged((profile.phase, profile.pace) for profile in profiles),
        sampled=any(profile.sampled for profile in profiles),
        clusters=clusters.merge([profile.clusters for profile in profiles]),
        notes=added(profile.notes for profile in profiles),
    )


class _Counts:
    """Running sums over the chunks of one recording."""

    def __init__(self, like: Trace) -> None:
        self.experts, self.top_k, self.layers = like.experts, like.top_k, like.layers
        self.coactivation = np.zeros((self.layers, self.experts, self.experts), dtype=np.int64)
        self.transitions = np.zeros_like(self.coactivation[1:])
        self.tokens = self.sequences = self.blocks = 0
        self.products = np.zeros((self.layers, self.experts, self.experts))
        self.lengths = np.zeros((self.layers, self.experts))
        self.squares = 0.0
        self.phases: set[str] = set()
        self.pace = like.pace
        self.notes: dict[str, float] = {}

    def add(self, trace: Trace) -> None:
        for start in range(0, trace.tokens, TOKENS_AT_A_TIME):
            part = slice(start, start + TOKENS_AT_A_TIME)
            self._add(trace.expert_ids[part])
        self._add_blocks(trace)
        self.tokens += trace.tokens
        self.sequences += trace.sequences
        self.phases.add(trace.phase)
        self.notes = added([self.notes, trace.notes])

    def _add_blocks(self, trace: Trace) -> None:
        """Counts by blocks of whole sequences, each of BLOCK_TOKENS or one sequence's more."""
        ends = np.cumsum(trace.seq_lens)
        block_of = np.repeat((ends - 1) // BLOCK_TOKENS, trace.seq_lens)
        names, block_of = np.unique(block_of, return_inverse=True)
        tokens = np.bincount(block_of).astype(np.float64)
        rows, blocks = block_of[:, None] * self.experts, len(names)
        for layer in range(self.layers):
            flat = (rows + trace.expert_ids[:, layer]).ravel()
            counts = np.bincount(flat, minlength=blocks * self.experts)
            by_block = counts.reshape(blocks, self.experts).astype(np.float64)
            self.products[layer] += by_block.T @ by_block
            self.lengths[layer] += tokens @ by_block
        self.squares += float(tokens @ tokens)
        self.blocks += blocks

    def _add(self, ids: IntArray) -> None:
        from placer.pairs import count_pairs  # starts Numba: only where tokens are counted

        before: IntArray | None = None
        for layer, coactivation in enumerate(self.coactivation):
            here = ids[:, layer].astype(np.int64, order="C")
            count_pairs(here, here, coactivation)
            if before is not None:
                count_pairs(before, here, self.transitions[layer - 1])
            before = here

    def profile(self) -> Profile:
        load = np.diagonal(self.coactivation, axis1=1, axis2=2)
        return Profile(
            load=load.astype(np.float64),
            top_k=self.top_k,
            tokens=self.tokens,
            sequences=self.sequences,
            transitions=self.transitions / self.top_k**2,
            coactivation=self.coactivation * (1.0 - np.eye(self.experts)),
            phase=self.phases.pop() if len(self.phases) == 1 else "mixed",
            spread=Spread(self.products, self.lengths, self.squares, self.blocks),
            pace=self.pace,
            notes=self.notes,
        )
