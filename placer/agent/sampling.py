"""Whole requests, token by token, for the trace: as many as a rate and a memory limit allow."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from placer.arrays import IntArray
from placer.marks import Mark, mark_of

BYTES_PER_S = 2**20  # of expert ids, in the mean
BYTES = 16 * 2**20  # that a worker keeps at most, and may take at once after a quiet time
LONGEST = 8192  # tokens of a request that are kept


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which requests are sampled: the first that begins in ``every_s`` seconds, again and again;
    with vocabulary ids or without."""

    every_s: float
    token_ids: bool


ALL = Sampling(0.0, token_ids=True)  # that there is room for


@dataclass(slots=True)
class _Open:
    """A request that is still being served, from ``first`` on. ``next`` is the position of its next
    token; prompt: the position after its prompt"""

    first: int
    prompt: int
    next: int
    rank: int | None
    expert_ids: list[IntArray] = field(default_factory=list)
    token_ids: list[IntArray] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.next - self.first


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """expert_ids: [tokens, layers, top_k]; prompt: the first tokens, which are of the prompt;
    token_ids: [tokens], or None if nobody asked for them; mark: how its rank was chosen
    rank: of the engine, that served it; None if it was the worker's own"""

    expert_ids: IntArray
    prompt: int
    token_ids: IntArray | None = None
    mark: Mark = Mark.NONE
    rank: int | None = None


class Sampler:
    """Chooses requests when they begin, and keeps the tokens of those. None before it is asked."""

    def __init__(self, bytes_per_token: int, now_s: float) -> None:
        self.bytes_per_token = bytes_per_token
        self.how: Sampling | None = None
        self._open: dict[str, _Open] = {}
        self._done: list[Sequence] = []
        self._held = 0  # bytes in _open and _done
        self._allowance = float(BYTES)
        self._at_s = self._due_s = now_s

    def ask(self, how: Sampling | None) -> None:
        """From now on, sample so; or nothing. What was not meant so is let go of."""
        is_alike = how and self.how and how.token_ids == self.how.token_ids
        self.how = how
        if not is_alike:
            self._open, self._done, self._held = {}, [], 0

    def begin(
        self, request: str, position: int, prompt: int, now_s: float, rank: int | None = None
    ) -> None:
        """A new request with a prompt of ``prompt`` tokens; kept if that is within the limits.
        rank: where, if the worker speaks for several"""
        rested = (now_s - self._at_s) * BYTES_PER_S
        self._allowance, self._at_s = min(self._allowance + rested, BYTES), now_s
        if request in self._open:  # resumed: it is routed again from its beginning
            self._drop(request)
        if self.how is None or now_s < self._due_s:
            return
        if self._allowance > 0 and self._held < BYTES:
            self._open[request] = _Open(position, prompt, position, rank)
            self._due_s = now_s + self.how.every_s

    def wants(self, request: str) -> bool:
        return request in self._open

    def add(
        self, request: str, position: int, expert_ids: IntArray, token_ids: IntArray | None
    ) -> None:
        """The next tokens of a request, from ``position`` on. token_ids: if they are asked for"""
        kept = self._open.get(request)
        if kept is None:
            return
        # Preempted and begun again, or drafts that were refused; or there is no room.
        if position != kept.next or self._held >= BYTES:
            self._drop(request)
            return
        kept.expert_ids.append(expert_ids)
        if token_ids is not None:
            kept.token_ids.append(token_ids)
        kept.next += len(expert_ids)
        size = len(expert_ids) * self.bytes_per_token
        self._held += size
        self._allowance -= size
        if kept.tokens >= LONGEST:
            self.finish([request])

    def finish(self, requests: Iterable[str]) -> None:
        """Requests that get no more tokens."""
        for request in requests:
            kept = self._open.pop(request, None)
            if kept is not None and kept.expert_ids:
                prompt = min(max(kept.prompt - kept.first, 0), kept.tokens)
                token_ids = np.concatenate(kept.token_ids) if kept.token_ids else None
                expert_ids = np.concatenate(kept.expert_ids)
                mark = mark_of(request)
                self._done.append(Sequence(expert_ids, prompt, token_ids, mark, kept.rank))

    def take(self) -> list[Sequence]:
        """The finished requests since the last time."""
        done, self._done = self._done, []
        self._held -= self.bytes_per_token * sum(len(one.expert_ids) for one in done)
        return done

    def _drop(self, request: str) -> None:
        self._held -= self.bytes_per_token * self._open.pop(request).tokens
