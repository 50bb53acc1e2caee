"""A worker whose recorder, sink and policy are stand-ins, and whose clock is moved by hand.

The reporter's thread repeats ``_round`` and sleeps in between. Tests call ``_round`` themselves:
the same work without the sleep, so that they say when. The thread itself runs in tests/vllm.
"""

from typing import Any, cast

from placer.agent.recording import Recording
from placer.agent.reporter import EVERY_S, Reporter
from placer.agent.sampling import Sampling
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.plan import Plan
from placer.worker import Status
from tests.agent.workers import a_recording, a_worker


class Clock(SystemClock):
    """Its time is what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Counting:
    """Every time it is asked it has seen one token more than the time before."""

    def __init__(self) -> None:
        self.taken: list[Recording] = []
        self.idle: Recording | None = None
        self.asked: list[Sampling | None] = []

    def sample(self, how: Sampling | None) -> None:
        self.asked.append(how)

    def take(self) -> Recording:
        self.taken.append(a_recording(prefill=[[[0]]] * (len(self.taken) + 1)))
        return self.taken[-1]

    def take_idle(self) -> Recording | None:
        idle, self.idle = self.idle, None
        return idle


class Applying:
    def __init__(self) -> None:
        self.worker, self.changes = a_worker(), 1
        self.epoch, self.digest, self.said, self.reason = 0, "", "", ""
        self.offered: list[int] = []

    def offer(self, epoch: int, plan: Plan) -> str:
        self.offered.append(epoch)
        return self.reason

    def condition(self) -> str:
        return self.said


class Sink:
    """Keeps what it is given, unless ``broken`` says what to raise."""

    def __init__(self) -> None:
        self.pushed: list[tuple[int, Recording]] = []
        self.statuses: list[Status] = []
        self.asked: list[int] = []
        self.tried: list[int] = []  # sequence numbers, of pushes that failed too
        self.found: tuple[int, Plan | PlacerError] | None = None
        self.broken: Exception | None = None
        self.done: list[str] = []
        self.sampling: Sampling | None = None

    def push(self, sequence: int, recording: Recording) -> None:
        self.tried.append(sequence)
        self._work("push")
        self.pushed.append((sequence, recording))

    def plan(self, after: int) -> tuple[int, Plan | PlacerError] | None:
        self.asked.append(after)
        self._work("plan")
        return self.found if self.found and self.found[0] > after else None

    def report(self, status: Status) -> None:
        self._work("report")
        self.statuses.append(status)

    def _work(self, what: str) -> None:
        if self.broken is not None:
            raise self.broken
        self.done.append(what)


class World:
    """A reporter and all that it meets."""

    def __init__(self, clock: Clock, sink: Sink | None = None) -> None:
        self.clock, self.sink = clock, sink or Sink()
        self.recorder, self.applying = Counting(), Applying()
        self.reporter = Reporter(
            a_worker(), self.sink, cast(Any, self.recorder), cast(Any, self.applying), clock
        )

    def tick(self, times: int = 1) -> None:
        """Steps of the engine, each when it is time to take what was recorded."""
        for _ in range(times):
            self.clock.now_s += EVERY_S
            self.reporter.tick()

    def round(self) -> None:
        self.reporter._round()

    @property
    def said(self) -> Status:
        """What was reported last."""
        return self.sink.statuses[-1]
