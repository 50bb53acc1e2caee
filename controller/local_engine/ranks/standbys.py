"""Processes that wait to be ranks: started and ready, without weights."""

import threading
from collections import deque
from contextlib import suppress
from itertools import count

from controller.local_engine.model.weights import Sizes
from controller.local_engine.ranks.messages import Detach, Pace, Setup
from placer.memory.process import GoneError, Process

MODULE = "controller.local_engine.ranks.rank"
REFILL_S = 1.0  # later: a process that starts takes processors from ranks that begin to serve


class Standbys:
    """Processes that wait to be ranks, of which ``keep`` are kept; those used last go last. Any
    thread may take and give."""

    def __init__(self, sizes: Sizes, pace: Pace | None, keep: int) -> None:
        self.sizes, self._keep = sizes, keep
        self._setup = Setup(sizes, pace)
        self._ready: deque[Process] = deque()
        self._numbers = count(1)
        self._filling: threading.Thread | None = None
        self._closed = threading.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def pids(self) -> list[int]:
        return [one.pid for one in self._ready]

    def fill(self, beside: int = 0) -> None:
        """Start what is lacking, and some beside, all at once."""
        wanted = self._keep + beside
        new = [self._start() for _ in range(wanted - len(self._ready))]
        for one in new:
            with suppress(GoneError):
                one.say(self._setup)
        for one in new:
            with suppress(GoneError):
                one.hear()
                self._ready.append(one)
        self._keep_only(wanted)  # some may have been given meanwhile

    def fill_meanwhile(self) -> None:
        """The same, on a thread of its own, REFILL_S later."""
        if self._filling is None or not self._filling.is_alive():
            self._filling = threading.Thread(target=self._refill, name="standbys", daemon=True)
            self._filling.start()

    def take(self) -> Process:
        """One that lives; it is started if none waits. Raises GoneError if it dies at that."""
        with suppress(IndexError):
            while True:
                if (one := self._ready.popleft()).is_alive:
                    return one
                one.end()
        one = self._start()
        one.ask(self._setup)
        return one

    def give(self, process: Process) -> None:
        """One that has no work any more."""
        try:
            process.ask(Detach())
        except GoneError:
            return
        self._ready.appendleft(process)
        self._keep_only(self._keep)

    def close(self) -> None:
        self._closed.set()
        if self._filling is not None:
            self._filling.join()
        for one in self._ready:
            one.end(grace_s=5.0)
        self._ready.clear()

    def _refill(self) -> None:
        if not self._closed.wait(REFILL_S):
            self.fill()

    def _keep_only(self, count: int) -> None:
        with suppress(IndexError):  # another thread took them
            while len(self._ready) > count:
                self._ready.pop().end()

    def _start(self) -> Process:
        return Process(MODULE, f"rank process {next(self._numbers)}")
