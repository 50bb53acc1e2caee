"""A worker whose recorder, sink and policy are stand-ins, and whose clock is moved by hand.

The reporter's thread repeats ``_round`` and sleeps in between. Tests call ``_round`` themselves:
the same work without the sleep, so that they say when. The thread itself runs in tests/vllm.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from placer.agent.recording import Recording
from placer.agent.reporter import EVERY_S, PATIENCE_S, POLL_S, QUEUE, Reporter
from placer.agent.sampling import ALL, Sampling
from placer.clock import SystemClock
from placer.errors import FileError, PlacerError
from placer.plan import Plan
from placer.worker import Status
from tests.agent.workers import a_plan, a_recording, a_worker

GENEROUS_S = 60.0  # a thread that has not come back by then never will


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

    def trouble(self) -> str:
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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)


def test_what_was_recorded_is_taken_when_it_is_time_and_not_after_every_step(world: World) -> None:
    for _ in range(3):
        world.reporter.tick()
    assert world.recorder.taken == []
    world.tick()
    world.reporter.tick()
    assert len(world.recorder.taken) == 1


def test_recordings_are_pushed_in_order_with_consecutive_numbers(world: World) -> None:
    world.tick(2)
    world.round()
    world.tick()
    world.round()
    world.round()
    assert world.sink.pushed == list(zip([1, 2, 3], world.recorder.taken, strict=True))
    assert world.said.tokens == 1 + 2 + 3


def test_a_worker_reports_before_it_pushes(world: World) -> None:
    world.tick()
    world.round()
    assert world.sink.done == ["report", "push", "plan"]


def test_a_recording_without_tokens_is_not_pushed_and_takes_no_number(world: World) -> None:
    empty = a_recording(prefill=[[[0]]])
    empty.counts.tokens[:] = 0
    world.recorder.idle = empty
    world.round()
    world.tick()
    world.round()
    assert world.sink.pushed == [(1, world.recorder.taken[0])]


def test_what_an_idle_engine_leaves_is_pushed_without_a_step(world: World) -> None:
    world.recorder.idle = rest = a_recording(decode=[[[0]]])
    world.round()
    assert world.sink.pushed == [(1, rest)]


def test_a_push_that_failed_is_made_again_with_its_number(world: World) -> None:
    world.tick(2)
    world.sink.broken = FileError("the disk is full")
    world.round()
    world.sink.broken = None
    world.clock.now_s += PATIENCE_S
    world.round()
    assert world.sink.tried == [1, 1, 2]
    assert world.sink.pushed == list(zip([1, 2], world.recorder.taken, strict=True))
    world.round()
    assert world.said.tokens == 1 + 2


def test_the_oldest_of_a_full_queue_is_dropped_and_counted(world: World) -> None:
    world.tick(QUEUE)
    world.tick(2)
    world.round()
    numbers = range(3, QUEUE + 3)  # 1 and 2 stay those of what was dropped
    assert world.sink.pushed == list(zip(numbers, world.recorder.taken[2:], strict=True))
    assert world.said.dropped == 2


def test_a_queue_that_is_just_full_loses_nothing(world: World) -> None:
    world.tick(QUEUE)
    world.round()
    assert len(world.sink.pushed) == QUEUE
    assert world.said.dropped == 0


def attempts(world: World, seconds: int) -> list[int]:
    """The seconds at which something was tried, with a round in each."""
    begun_s, found = world.clock.now_s, []
    for second in range(seconds):
        world.clock.now_s = begun_s + second
        before = len(world.sink.asked)
        world.round()
        if len(world.sink.asked) > before:
            found.append(second)
    world.clock.now_s = begun_s + seconds
    return found


def test_pauses_double_while_it_fails_up_to_the_longest(world: World) -> None:
    assert (POLL_S, PATIENCE_S) == (1, 20)
    world.sink.broken = FileError("the disk is full")
    assert attempts(world, 80) == [0, 1, 3, 7, 15, 31, 51, 71]


def test_a_success_ends_the_pauses(world: World) -> None:
    world.sink.broken = FileError("the disk is full")
    assert attempts(world, 51) == [0, 1, 3, 7, 15, 31]
    world.sink.broken = None
    assert attempts(world, 3) == [0, 1, 2]
    world.sink.broken = FileError("the disk is full again")
    assert attempts(world, 8) == [0, 1, 3, 7]


def test_what_fails_alone_does_not_keep_the_rest_from_being_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise FileError("no plans today")

    monkeypatch.setattr(world.sink, "plan", fail)
    world.tick()
    world.round()
    assert len(world.sink.pushed) == len(world.sink.statuses) == 1


@pytest.mark.parametrize(
    "error",
    [
        FileError("one of placer's"),
        OSError(28, "no space"),
        ValueError(),
        MemoryError(),
        AssertionError("a bug"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(),
        ExceptionGroup("many", [ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_exception_of_the_sink_leaves_the_reporter(world: World, error: Exception) -> None:
    world.sink.broken = error
    world.tick()
    world.round()
    world.reporter.close()
    world.sink.broken = None
    world.reporter.close()
    assert world.sink.pushed != []
    assert world.said.dropped == 0


def test_trouble_that_stays_the_same_is_logged_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for text in ("the disk is full", "the disk is gone"):
            world.sink.broken = FileError(text)
            for _ in range(3):
                world.clock.now_s += PATIENCE_S
                world.round()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"placer: {text}; serving goes on, will try again"
        for text in ("the disk is full", "the disk is gone")
    ]


def test_every_plan_is_offered_once(world: World) -> None:
    for epoch in (3, 3, 5):
        world.sink.found = (epoch, a_plan())
        world.round()
    assert world.applying.offered == [3, 5]
    assert world.sink.asked == [0, 3, 3]
    assert world.said.refused == ""


def test_a_refused_plan_is_reported_with_its_epoch_and_the_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.sink.found = (3, a_plan())
    world.applying.reason = "it is for 4 ranks"
    world.round()
    world.round()
    assert (world.said.refused_epoch, world.said.refused) == (3, "it is for 4 ranks")
    assert "plan 3 is refused, the map stays: it is for 4 ranks" in caplog.text


def test_a_plan_that_cannot_be_read_is_refused_without_being_offered(world: World) -> None:
    world.sink.found = (4, FileError("000004.json is not JSON"))
    world.round()
    world.round()
    assert (world.said.refused_epoch, world.said.refused) == (4, "000004.json is not JSON")
    assert world.applying.offered == []


def test_what_is_reported_as_applied_is_what_the_policy_read_back(world: World) -> None:
    world.sink.found = (3, a_plan())
    world.round()
    assert (world.said.epoch, world.said.digest) == (0, "")  # taken up, and not there yet
    world.applying.epoch, world.applying.digest = 3, "sha256:ab"
    world.round()
    assert (world.said.epoch, world.said.digest) == (3, "sha256:ab")


def test_after_a_change_of_width_a_worker_registers_anew_and_the_newest_plan_is_offered_again(
    world: World,
) -> None:
    world.sink.found = (3, a_plan())
    world.tick()
    world.round()
    world.applying.epoch, world.applying.digest = 3, "sha256:ab"
    world.round()
    wider = a_worker(slots=8, ep_size=4)
    world.applying.epoch, world.applying.digest = 0, ""
    world.applying.worker, world.applying.changes = wider, 2
    world.applying.reason = "it is for 2 ranks"
    world.round()
    world.round()
    assert world.applying.offered == [3, 3]
    assert world.said == Status(wider, refused_epoch=3, refused="it is for 2 ranks", tokens=1)


def test_a_plan_that_came_too_early_for_a_new_width_is_not_refused_for_ever(world: World) -> None:
    world.sink.found, world.applying.reason = (3, a_plan()), "the engine has 2 ranks"
    world.round()
    world.round()
    assert world.said.refused_epoch == 3
    world.applying.reason, world.applying.changes = "", 2
    world.round()
    assert world.applying.offered == [3, 3]
    assert world.said.refused_epoch == 0


def test_a_rearrangement_that_stalls_is_reported_until_it_ends(world: World) -> None:
    world.applying.said = "a rebalance has not finished"
    world.round()
    assert world.said.trouble == "a rebalance has not finished"
    world.applying.said = ""
    world.round()
    assert world.said.trouble == ""


def test_what_never_goes_away_is_told_where_nothing_worse_is(clock: Clock) -> None:
    sink, applying = Sink(), Applying()
    reporter = Reporter(
        a_worker(), sink, None, cast(Any, applying), clock, "its experts are not seen"
    )
    for applying.said in ("", "a rebalance has not finished", ""):
        reporter._round()
    assert [status.trouble for status in sink.statuses] == [
        "its experts are not seen",
        "a rebalance has not finished",
        "its experts are not seen",
    ]


def test_a_status_that_stays_the_same_is_repeated_with_every_push_interval(world: World) -> None:
    for _ in range(2 * int(EVERY_S)):
        world.round()
        world.clock.now_s += POLL_S
    assert world.sink.statuses == [Status(a_worker())] * 2


def test_a_report_that_failed_is_made_again_though_nothing_changed(world: World) -> None:
    world.sink.broken = FileError("the disk is full")
    world.round()
    world.sink.broken = None
    world.clock.now_s += POLL_S
    world.round()
    assert world.sink.statuses == [Status(a_worker())]


def test_a_worker_without_recorder_or_policy_reports_all_the_same(clock: Clock) -> None:
    sink = Sink()
    reporter = Reporter(a_worker(), sink, None, None, clock)
    reporter.tick()
    reporter._round()
    reporter.close()
    assert sink.statuses == [Status(a_worker())]
    assert (sink.pushed, sink.asked) == ([], [])


def test_closing_pushes_the_rest_and_reports_even_during_a_pause(world: World) -> None:
    world.sink.broken = FileError("the disk is full")
    world.tick()
    world.round()
    world.sink.broken = None
    world.reporter.close()
    assert [recording for _, recording in world.sink.pushed] == world.recorder.taken
    assert len(world.recorder.taken) == 2
    assert world.said.tokens == 1 + 2


class Hanging(Sink):
    """Comes back from ``method`` only when it is let go."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.entered, self.let_go = threading.Event(), threading.Event()
        does: Callable[..., Any] = getattr(self, method)

        def hang(*args: object) -> object:
            self.entered.set()
            assert self.let_go.wait(GENEROUS_S)
            return does(*args)

        setattr(self, method, hang)


@pytest.mark.parametrize("method", ["push", "plan", "report"])
def test_the_engine_does_not_wait_for_a_sink_that_hangs(clock: Clock, method: str) -> None:
    sink = Hanging(method)
    world = World(clock, sink)
    world.tick()
    agent = threading.Thread(target=world.round, daemon=True)
    agent.start()
    assert sink.entered.wait(GENEROUS_S)
    engine = threading.Thread(target=world.tick, args=(QUEUE - 1,), daemon=True)
    engine.start()
    engine.join(GENEROUS_S)
    assert not engine.is_alive()
    assert agent.is_alive()
    assert len(world.recorder.taken) == QUEUE
    sink.let_go.set()
    agent.join(GENEROUS_S)
    world.round()
    assert [recording for _, recording in sink.pushed] == world.recorder.taken
    assert world.said.dropped == 0


def test_the_recorder_samples_what_the_sink_wants_from_the_start_and_after_each_report(
    clock: Clock,
) -> None:
    world = World(clock)
    assert world.recorder.asked == [None]
    world.sink.sampling = ALL
    world.round()
    assert world.recorder.asked == [None, ALL]
