"""Time, and what is drawn by lot, as arguments: whoever needs either is given a clock.

An *instant* is UTC: it is written down and shown, and may jump. A *duration* is a difference of two
readings of ``monotonic``, which never jumps and means nothing to another process. What was written
down as an instant becomes a duration again by ``age``.
"""

import asyncio
import random
import time
from contextlib import AbstractAsyncContextManager
from threading import Event
from typing import Protocol


class Readings(Protocol):
    """random: where all lots come from; with the same seed they are the same"""

    random: random.Random

    def now(self) -> float:
        """Unix seconds."""

    def monotonic(self) -> float:
        """Seconds since some moment."""

    def new_id(self) -> str:
        """32 hexadecimal digits, which nobody had before."""


class Clock(Readings, Protocol):
    """The clock of an event loop."""

    async def sleep(self, seconds: float) -> None:
        """For 0 seconds: let others go first."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Raises TimeoutError in what takes longer."""


class ThreadClock(Readings, Protocol):
    """The clock of threads."""

    def wait(self, event: Event, seconds: float) -> bool:
        """For the event, but no longer; whether it came."""


class Lots:
    """What a source of random bits makes possible."""

    def __init__(self, source: random.Random) -> None:
        self.random = source

    def new_id(self) -> str:
        return f"{self.random.getrandbits(128):032x}"


class SystemClock(Lots):
    """This machine's."""

    def __init__(self) -> None:
        super().__init__(random.SystemRandom())

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(seconds)

    def wait(self, event: Event, seconds: float) -> bool:
        return event.wait(seconds)


def age(clock: Readings, instant: float, longest: float) -> float:
    """Seconds since an instant that was written down, as far as wall clocks tell: no less than none
    and no more than ``longest``, whatever they say."""
    return min(max(clock.now() - instant, 0.0), longest)
