"""Whole requests, token by token, for the trace: as many as a rate and a memory limit allow."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from placer.arrays import IntArray

BYTES_PER_S = 2**20  # of expert ids, in the mean
BYTES = 16 * 2**20  # that a worker keeps at most, and may take at once after a quiet time
LONGEST = 8192  # tokens of a request that are kept


@dataclass(slots=True)
class _Open:
    """A request that is still being served. ``next`` is the position of its next token."""

    next: int
    tokens: int = 0
    expert_ids: list[IntArray] = field(default_factory=list)
    token_ids: list[IntArray] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Sequence:
    """expert_ids: [tokens, layers, top_k]; token_ids: [tokens]"""

    expert_ids: IntArray
    token_ids: IntArray


class Sampler:
    """Chooses requests when they begin, and keeps the tokens of those."""

    def __init__(self, bytes_per_token: int, now_s: float) -> None:
        self.bytes_per_token = bytes_per_token
        self._open: dict[str, _Open] = {}
        self._done: list[Sequence] = []
        self._held = 0  # bytes in _open and _done
        self._allowance = float(BYTES)
        self._at_s = now_s

    def begin(self, request: str, position: int, now_s: float) -> None:
        """A new request; kept if that is within the limits."""
        rested = (now_s - self._at_s) * BYTES_PER_S
        self._allowance, self._at_s = min(self._allowance + rested, BYTES), now_s
        if request in self._open:  # resumed: it is routed again from its beginning
            self._drop(request)
        if self._allowance > 0 and self._held < BYTES:
            self._open[request] = _Open(position)

    def wants(self, request: str) -> bool:
        return request in self._open

    def add(self, request: str, position: int, expert_ids: IntArray, token_ids: IntArray) -> None:
        """The next tokens of a request, from ``position`` on."""
        kept = self._open.get(request)
        if kept is None:
            return
        # Preempted and begun again, or drafts that were refused; or there is no room.
        if position != kept.next or self._held >= BYTES:
            self._drop(request)
            return
        kept.expert_ids.append(expert_ids)
        kept.token_ids.append(token_ids)
        kept.next += len(token_ids)
        kept.tokens += len(token_ids)
        size = len(token_ids) * self.bytes_per_token
        self._held += size
        self._allowance -= size
        if kept.tokens >= LONGEST:
            self.finish([request])

    def finish(self, requests: Iterable[str]) -> None:
        """Requests that get no more tokens."""
        for request in requests:
            kept = self._open.pop(request, None)
            if kept is not None and kept.token_ids:
                self._done.append(
                    Sequence(np.concatenate(kept.expert_ids), np.concatenate(kept.token_ids))
                )

    def take(self) -> list[Sequence]:
        """The finished requests since the last time."""
        done, self._done = self._done, []
        self._held -= self.bytes_per_token * sum(len(one.token_ids) for one in done)
        return done

    def _drop(self, request: str) -> None:
        self._held -= self.bytes_per_token * self._open.pop(request).tokens
