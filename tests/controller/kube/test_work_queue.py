"""Keys that wait for workers, in virtual time."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from controller.kube.cluster.work_queue import FIRST_S, LONGEST_S, WorkQueue
from placer.virtual_clock import VirtualClock


def in_virtual_time(test: Callable[[VirtualClock], Coroutine[Any, Any, None]]) -> Any:
    def run() -> None:
        clock = VirtualClock()
        clock.run(test(clock))

    run.__name__ = test.__name__
    return run


@in_virtual_time
async def test_a_key_that_waits_is_not_added_again(clock: VirtualClock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock)
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.take(), await queue.take()] == ["a", "b"]
    assert len(queue) == 0


@in_virtual_time
async def test_one_that_is_worked_on_comes_again_after_that(clock: VirtualClock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a")
    await queue.take()
    queue.add("a")
    queue.add("b")
    assert await queue.take() == "b"  # and no second worker has a meanwhile
    queue.done("a")
    assert await queue.take() == "a"


@in_virtual_time
async def test_failures_wait_twice_as_long_each_and_a_success_forgets_them(
    clock: VirtualClock,
) -> None:
    queue: WorkQueue[str] = WorkQueue(clock)
    waits = []
    for _ in range(12):
        begun_s = clock.monotonic()
        queue.failed("a")
        assert await queue.take() == "a"
        waits.append(clock.monotonic() - begun_s)
        queue.done("a")
    assert waits == pytest.approx([min(FIRST_S * 2**n, LONGEST_S) for n in range(12)])
    queue.succeeded("a")
    assert queue.failed("a") == FIRST_S


@in_virtual_time
async def test_a_server_that_asks_for_a_longer_wait_gets_it(clock: VirtualClock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock)
    assert queue.failed("a", least_s=7.0) == 7.0
    await queue.take()
    assert clock.monotonic() == 7.0


@in_virtual_time
async def test_of_two_times_the_earlier_counts(clock: VirtualClock) -> None:
    queue: WorkQueue[str] = WorkQueue(clock)
    for seconds in (5.0, 2.0, 9.0):
        queue.add_after("a", seconds)
    await queue.take()
    assert clock.monotonic() == 2.0
    assert len(queue) == 0
