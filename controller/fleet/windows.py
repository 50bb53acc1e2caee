"""The traffic of the last while, by phase, merged over the workers of a pool."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from placer.arrays import IntArray
from placer.consistency import check_load, check_pairs
from placer.errors import RoutingError
from placer.pace import Pace, merged
from placer.profile import Profile


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """What one worker counted in one phase since its last push.

    load: [layers, experts] tokens; transitions: [layers - 1, experts, experts] and
    coactivation: [layers, experts, experts], or None if it did not send them
    """

    phase: str
    top_k: int
    tokens: int
    sequences: int
    load: IntArray
    transitions: IntArray | None = None
    coactivation: IntArray | None = None

    @property
    def lean(self) -> "Delta":
        """Without its pairs."""
        if self.transitions is None and self.coactivation is None:
            return self
        return replace(self, transitions=None, coactivation=None)

    def check(self, layers: int, experts: int, top_k: int) -> None:
        """Raises RoutingError unless the counts fit the model and each other."""
        if (*self.load.shape, self.top_k) != (layers, experts, top_k):
            raise RoutingError(
                f"counts of {self.load.shape[0]} layers x {self.load.shape[1]} experts, top-"
                f"{self.top_k}, in a pool of {layers} x {experts}, top-{top_k}: is PLACER_POOL the "
                "model's?"
            )
        if self.tokens < 1 or self.load.max() < 1:
            raise RoutingError(
                f"{self.tokens} tokens, top-{self.top_k}, but layer 0 counts "
                f"{self.load[0].sum()} choices: the counts contradict themselves"
            )
        # Fewer choices are possible: an engine may mark some that are no expert's.
        check_load(self.load, self.tokens, self.top_k, sampled=True)

    def check_pairs(self) -> None:
        """Raises RoutingError unless tokens with this load can have these pairs."""
        if self.transitions is not None and self.coactivation is not None:
            pairs = self.transitions, self.coactivation
            check_pairs(self.load, self.tokens, self.top_k, *pairs)


class _Half:
    """Sums since ``begun_s``."""

    def __init__(self, begun_s: float) -> None:
        self.begun_s = begun_s
        self.tokens = self.sequences = 0
        self.load: IntArray | None = None
        self.pairs: tuple[IntArray, IntArray] | None = None
        self.pair_tokens = 0  # that transitions and co-activations were counted of
        self.pace: Pace | None = None

    def add(self, delta: Delta) -> None:
        self.tokens += delta.tokens
        self.sequences += delta.sequences
        if self.load is None:
            self.load = delta.load.astype("int64")
        else:
            self.load += delta.load
        if delta.transitions is None or delta.coactivation is None:
            return
        if self.pair_tokens + delta.tokens >= 2**32:  # beyond which a pair's sum might not be
            return
        self.pair_tokens += delta.tokens
        pairs = delta.transitions, delta.coactivation
        if self.pairs is None:
            self.pairs = pairs[0].astype("uint32"), pairs[1].astype("uint32")
        else:
            self.pairs[0][...] += pairs[0]
            self.pairs[1][...] += pairs[1]

    def plus(self, other: "_Half") -> "_Half":
        total = _Half(min(self.begun_s, other.begun_s))
        for half in (self, other):
            total.tokens += half.tokens
            total.sequences += half.sequences
            total.pair_tokens += half.pair_tokens
        total.load = _sum(self.load, other.load)
        if self.pairs is None or other.pairs is None:
            total.pairs = self.pairs or other.pairs
        else:
            both = zip(self.pairs, other.pairs, strict=True)
            transitions, coactivation = (one.astype("int64") + two for one, two in both)
            total.pairs = transitions, coactivation
        return total

    def profile(self, phase: str, top_k: int) -> Profile:
        """Affinity is known of some tokens only, and taken to be that of all."""
        assert self.load is not None
        transitions = coactivation = None
        if self.pairs is not None:
            share = np.float64(self.pair_tokens / self.tokens)
            transitions, coactivation = (pairs / share for pairs in self.pairs)
        return Profile(
            load=self.load.astype(float),
            top_k=top_k,
            tokens=self.tokens,
            sequences=self.sequences,
            transitions=transitions,
            coactivation=coactivation,
            phase=phase,
            sampled=True,
        )


class Window:
    """The traffic of one pool and phase: the sum of this half and the last, so it reaches back
    between half of ``span_s`` and all of it. Memory does not grow with time. Its seconds are of a
    monotonic clock."""

    def __init__(self, span_s: float, now_s: float) -> None:
        self.span_s = span_s
        self._last: _Half | None = None
        self._this = _Half(now_s)

    def add(self, delta: Delta, now_s: float) -> None:
        self.roll(now_s)
        self._this.add(delta)

    def pass_steps(self, pace: Pace, now_s: float) -> None:
        """Steps that a worker took in this phase while it counted."""
        self.roll(now_s)
        self._this.pace = merged([("", self._this.pace), ("", pace)])

    def roll(self, now_s: float) -> None:
        """Forget what is too long ago."""
        half_s = self.span_s / 2
        passed = int((now_s - self._this.begun_s) // half_s)
        if passed > 0:
            self._last = self._this if passed == 1 else None
            self._this = _Half(self._this.begun_s + passed * half_s)

    def parts(self, phase: str, top_k: int) -> list[tuple[float, Delta, Pace | None]]:
        """Since when, what was counted and how steps went, in each half; without affinity."""
        return [
            (half.begun_s, Delta(phase, top_k, half.tokens, half.sequences, half.load), half.pace)
            for half in self._halves
            if half.load is not None
        ]

    def put_back(self, parts: Sequence[tuple[float, Delta, Pace | None]]) -> None:
        """What ``parts`` gave, into a new window."""
        for begun_s, delta, pace in parts:
            self._last = self._this if self._this.tokens else None
            self._this = _Half(begun_s)
            self._this.add(delta)
            self._this.pace = pace

    @property
    def since_s(self) -> float | None:
        """When the oldest of what is in it may have been counted; None if nothing was."""
        return min((half.begun_s for half in self._halves), default=None)

    @property
    def tokens(self) -> int:
        return sum(half.tokens for half in self._halves)

    def profile(self, phase: str, top_k: int, now_s: float) -> Profile | None:
        """None if there was no traffic."""
        halves = self._halves
        if not halves:
            return None
        total = reduce(_Half.plus, halves)
        window_s = now_s - total.begun_s
        return replace(total.profile(phase, top_k), window_s=window_s, pace=self.pace)

    @property
    def pace(self) -> Pace | None:
        """Also of a half in which nothing was served."""
        return merged(("", half.pace) for half in (self._last, self._this) if half is not None)

    @property
    def _halves(self) -> list[_Half]:
        return [half for half in (self._last, self._this) if half is not None and half.tokens]


def _sum(one: IntArray | None, other: IntArray | None) -> IntArray | None:
    return one if other is None else other if one is None else one + other
