"""A queue of keys: each is in it once, is worked on by one worker at a time, and waits the longer
the more often it failed. The model is client-go's workqueue."""

import asyncio
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from placer.clock import Clock

K = TypeVar("K", bound=Hashable)
FIRST_S, LONGEST_S = 0.05, 30.0


class WorkQueue(Generic[K]):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[K] = deque()
        self._wanted: set[K] = set()  # waits, or is to be done once more
        self._worked_on: set[K] = set()
        self._failures: dict[K, int] = {}
        self._later: dict[K, tuple[float, asyncio.Task[None]]] = {}
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._wanted)

    def add(self, key: K) -> None:
        if key in self._wanted:
            return
        self._wanted.add(key)
        if key not in self._worked_on:
            self._waiting.append(key)
            self._some.set()

    def add_after(self, key: K, seconds: float) -> None:
        """The earliest of what was asked for counts."""
        due = self._clock.monotonic() + seconds
        if (before := self._later.get(key)) is not None:
            if before[0] <= due:
                return
            before[1].cancel()
        self._later[key] = due, asyncio.create_task(self._add_later(key, seconds))

    def failed(self, key: K, least_s: float = 0.0) -> float:
        """Again after a while, whose length is returned."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = max(min(FIRST_S * 2 ** (failures - 1), LONGEST_S), least_s)
        self.add_after(key, seconds)
        return seconds

    def succeeded(self, key: K) -> None:
        self._failures.pop(key, None)

    async def take(self) -> K:
        """To be given back by ``done``."""
        while not self._waiting:
            self._some.clear()
            await self._some.wait()
        key = self._waiting.popleft()
        self._wanted.discard(key)
        self._worked_on.add(key)
        return key

    def done(self, key: K) -> None:
        self._worked_on.discard(key)
        if key in self._wanted:
            self._waiting.append(key)
            self._some.set()

    def close(self) -> None:
        for _, task in self._later.values():
            task.cancel()

    async def _add_later(self, key: K, seconds: float) -> None:
        await self._clock.sleep(seconds)
        del self._later[key]
        self.add(key)
