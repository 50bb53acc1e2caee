"""Time that passes when everybody waits for it: days of a controller in seconds.

The clock has an event loop of its own, whose timers are the heap of all who sleep. When no task can
run, and only then, the loop asks its selector to wait until the first of them is due. If nobody is
at work off the loop either, that much time has passed.
"""

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from threading import Lock
from typing import Any, TypeVar, TypeVarTuple

from placer.clock import Lots

RESOLUTION_S = 1e-6

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualClock(Lots):
    """Stands still while anybody can work, and is then at the next moment that somebody waits for.
    Durations begin at 0.

    now: unix seconds at its beginning; seed: of ids and lots
    """

    def __init__(self, now: float = 0.0, seed: int = 0) -> None:
        super().__init__(random.Random(seed))
        self._monotonic, self._ahead = 0.0, now  # the wall clock, of the other
        self._loop: VirtualLoop | None = None
        self._off_the_loop, self._guard = 0, Lock()

    def now(self) -> float:
        return self._ahead + self._monotonic

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self._check()
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        self._check()
        return asyncio.timeout(seconds)

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """The wall clock is put on, or back; no time passes."""
        self._ahead += seconds

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Time stands still meanwhile: around work of which the loop does not know, on whatever
        thread it is. What the loop has executors do is counted already."""
        with self._guard:
            self._off_the_loop += 1
        try:
            yield
        finally:
            with self._guard:
                self._off_the_loop -= 1
            if self._loop is not None:
                self._loop.wake()

    @property
    def is_busy(self) -> bool:
        return self._off_the_loop > 0

    def loop(self) -> "VirtualLoop":
        """A new event loop, in whose sleeps this time passes."""
        self._loop = VirtualLoop(self)
        return self._loop

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        """As asyncio.run, in virtual time."""
        with asyncio.Runner(loop_factory=self.loop) as runner:
            return runner.run(doing)

    def _check(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this event loop's time is another's: use VirtualClock.run")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers go by a virtual clock: all of asyncio's waiting does."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        super().__init__(_Selector(clock))
        # asyncio runs what is due within a nanosecond, which after half a year is lost in a float.
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        return self.clock.monotonic()

    def wake(self) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # if it is closed
            self.call_soon_threadsafe(lambda: None)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        working = self.clock.busy()
        working.__enter__()
        try:
            future = super().run_in_executor(executor, func, *args)
        except BaseException:
            working.__exit__(None, None, None)
            raise
        future.add_done_callback(lambda _: working.__exit__(None, None, None))
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        with self.clock.busy():  # its threads end in real time
            await super().shutdown_default_executor(*args)


class _Selector(selectors.DefaultSelector):
    """Waits for files as others do, and never for time."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if self._clock.is_busy:
            return super().select()  # whoever ends wakes the loop
        # In this order: who was at work until just now has woken it already.
        if not (events := super().select(0)):
            self._clock.advance(timeout)
        return events
