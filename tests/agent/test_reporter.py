"""What leaves a worker, when, and what becomes of it if it cannot."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from placer.agent.reporter import EVERY_S, PATIENCE_S, POLL_S, QUEUE, Reporter
from placer.agent.sampling import ALL
from placer.errors import FileError
from placer.worker import Status
from tests.agent.tiny_reporter import Clock, Sink, World
from tests.agent.workers import a_recording, a_worker

GENEROUS_S = 60.0  # a thread that has not come back by then never will


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
