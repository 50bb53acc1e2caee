"""Sleepers, threads and deadlines on a clock that moves when nobody can."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from placer.clock import SystemClock, age
from placer.virtual_clock import VirtualClock


def test_sleepers_wake_in_order_each_at_its_time() -> None:
    clock = VirtualClock(now=1_000.0)
    woken: list[tuple[float, float, float]] = []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.monotonic(), clock.now()))

    async def all_of_them() -> None:
        await asyncio.gather(*map(sleep, (30.0, 5.0, 60.0)))

    clock.run(all_of_them())
    assert woken == [(5.0, 5.0, 1_005.0), (30.0, 30.0, 1_030.0), (60.0, 60.0, 1_060.0)]


def test_as_long_as_a_task_can_run_no_time_passes() -> None:
    """However many turns it takes of the loop."""
    clock = VirtualClock()

    async def work() -> float:
        sleeper = asyncio.create_task(clock.sleep(1.0))
        for _ in range(10_000):
            await clock.sleep(0)
        seen = clock.monotonic()
        await sleeper
        return seen

    assert clock.run(work()) == 0.0
    assert clock.monotonic() == 1.0


def test_whoever_sleeps_again_is_in_order_with_the_others() -> None:
    clock, told = VirtualClock(), list[str]()

    async def often(name: str, seconds: float, times: int) -> None:
        for _ in range(times):
            await clock.sleep(seconds)
            told.append(f"{name}{clock.monotonic():g}")

    async def both() -> None:
        await asyncio.gather(often("a", 2.0, 3), often("b", 3.0, 2))

    clock.run(both())
    assert told[:3] == ["a2", "b3", "a4"]
    assert sorted(told[3:]) == ["a6", "b6"]


def test_what_an_executor_does_takes_no_time_however_long_it_lasts() -> None:
    clock, gate = VirtualClock(), threading.Event()

    async def work() -> tuple[float, float]:
        sleeper = asyncio.create_task(clock.sleep(1.0))
        running = asyncio.get_running_loop()
        with ThreadPoolExecutor(2) as threads:
            waits = running.run_in_executor(threads, gate.wait, 60)
            await running.run_in_executor(threads, time.sleep, 0.01)
            before = clock.monotonic()
            gate.set()
            assert await waits
        await asyncio.to_thread(time.sleep, 0.01)
        during = clock.monotonic()
        await sleeper
        return before, during

    assert clock.run(work()) == (0.0, 0.0)
    assert clock.monotonic() == 1.0


def test_work_that_a_thread_does_by_itself_takes_no_time() -> None:
    clock, seen = VirtualClock(), list[float]()

    def work(busy: threading.Event) -> None:
        with clock.busy():
            busy.set()
            time.sleep(0.01)
            seen.append(clock.monotonic())

    async def sleep() -> None:
        busy = threading.Event()
        thread = threading.Thread(target=work, args=(busy,))
        thread.start()
        busy.wait(60)
        await clock.sleep(3_600.0)
        thread.join()

    clock.run(sleep())
    assert (seen, clock.monotonic()) == ([0.0], 3_600.0)


def test_a_deadline_is_of_virtual_time() -> None:
    clock = VirtualClock()

    async def late(seconds: float) -> None:
        async with clock.timeout(60.0):
            await clock.sleep(seconds)

    clock.run(late(59.0))
    with pytest.raises(TimeoutError):
        clock.run(late(61.0))
    assert clock.monotonic() == 59.0 + 60.0


def test_years_pass() -> None:
    clock = VirtualClock()

    async def sleep() -> None:
        for _ in range(5_000):
            await clock.sleep(86_400.0)
        await clock.sleep(0.25)

    clock.run(sleep())
    assert clock.monotonic() == 5_000 * 86_400.0 + 0.25


def test_a_wall_clock_that_jumps_wakes_nobody() -> None:
    clock = VirtualClock(now=1_000.0)

    async def jump() -> float:
        sleeper = asyncio.create_task(clock.sleep(10.0))
        await clock.sleep(1.0)
        clock.jump(1e9)
        await clock.sleep(1.0)
        clock.jump(-1e9)
        assert not sleeper.done()
        await sleeper
        return clock.now()

    assert clock.run(jump()) == 1_010.0


def test_another_loops_time_is_not_slept_through() -> None:
    clock = VirtualClock()
    for wait in (clock.sleep(1.0), VirtualClock().sleep(1.0)):
        with pytest.raises(RuntimeError, match=r"another's: use VirtualClock\.run"):
            asyncio.run(wait)


def test_with_one_seed_ids_and_lots_are_the_same() -> None:
    one, same, other = VirtualClock(seed=7), VirtualClock(seed=7), VirtualClock(seed=8)
    ids = [[clock.new_id() for _ in range(3)] for clock in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]
    assert one.random.random() == same.random.random()
    assert len({len(id) for id in ids[0]} | {32}) == 1
    system = SystemClock()
    assert system.new_id() != system.new_id()


def test_an_instant_is_no_longer_ago_than_matters_and_never_to_come() -> None:
    clock = VirtualClock(now=1_000.0)
    ages = [age(clock, instant, longest=300.0) for instant in (990.0, 1e9, -1e9, 700.0)]
    assert ages == [10.0, 0.0, 300.0, 300.0]
