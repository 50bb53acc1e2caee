"""What the loop may rely on, wherever plans are made: the same tests for every ``Planner``."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Any

import pytest

from controller.engines.in_memory import MemoryPlanner
from controller.engines.planning import answer
from controller.engines.process_planner import PlannerError, ProcessPlanner
from controller.ports import Relocation
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.parallel import connect, disconnect
from placer.plan import Hold, Infeasible, Plan
from placer.problem import Problem
from placer.schedule import Budget, schedule
from tests.builders import a_model, by_hand, loads
from tests.controller.tiny_pool import (
    GOAL,
    HOME,
    POOL,
    SKEWED,
    World,
    asynchronous,
    decided,
    in_virtual_time,
)

RELOCATION = Relocation(HOME, GOAL, 100, by_hand(), Budget(100))


def a_problem(**changes: Any) -> Problem:
    told: dict[str, Any] = {
        "model": a_model(), "topology": by_hand(), "profile": loads(SKEWED), "slots": 4,
        "current": HOME, **changes,
    }  # fmt: skip
    return Problem(**told)


@asynccontextmanager
async def planning(kind: str) -> AsyncIterator[Any]:
    if kind == "in memory":
        yield MemoryPlanner(SystemClock())
    elif kind == "in processes":
        with closing(ProcessPlanner(2)) as planner:
            yield planner
    else:
        connect("local", object_store_memory=200 * 2**20)
        from controller.engines.ray_engines import RayPlanner

        yield RayPlanner()
        disconnect()


BY_RAY = pytest.param("by Ray", marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")])
every = pytest.mark.parametrize("kind", ["in memory", "in processes", BY_RAY])


@every
@asynchronous
async def test_the_answer_is_the_same_wherever_it_is_made(kind: str) -> None:
    objective = replace(a_problem().objective, max_moved=1.0, horizon_s=1e9)
    problem = a_problem(objective=objective)
    async with planning(kind) as planner:
        found = await asyncio.gather(*(planner.answer(problem, "eplb") for _ in range(3)))
        held = await planner.answer(a_problem(profile=loads([[250] * 4] * 2)), "eplb")
    expected = answer(problem, "eplb")
    assert isinstance(expected, Plan)
    assert {one.placement.digest for one in found} == {expected.placement.digest}
    assert {one.reason for one in found} == {expected.reason}
    assert isinstance(held, Hold | Infeasible)


@every
@asynchronous
async def test_the_way_to_a_placement_is_the_same_wherever_it_is_found(kind: str) -> None:
    async with planning(kind) as planner:
        found = await planner.scheduled(RELOCATION)
    expected = schedule(*RELOCATION)
    assert found.rounds == expected.rounds
    assert found.after.digest == GOAL.digest


@asynchronous
async def test_what_was_approved_waits_for_no_solve() -> None:
    with closing(ProcessPlanner(1)) as planner:
        async with planner._room:  # somebody else's solve
            found = await planner.scheduled(RELOCATION)
    assert found.rounds


@every
@asynchronous
async def test_an_error_of_placers_comes_as_itself(kind: str) -> None:
    async with planning(kind) as planner:
        with pytest.raises(PlacerError, match="no-such"):
            await planner.answer(a_problem(), "no-such")
        assert isinstance(await planner.answer(a_problem(), "eplb"), Plan | Hold)


def pid_of(planner: ProcessPlanner) -> int:
    (worker,) = planner._all
    pid = worker._process.pid
    assert pid is not None
    return pid


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynchronous
async def test_a_process_that_dies_is_named_and_the_next_is_another() -> None:
    with closing(ProcessPlanner(1)) as planner:
        await planner.answer(a_problem(), "eplb")
        killed = pid_of(planner)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(PlannerError, match=r"the process that planned died \(signal 9\): is"):
            await planner.answer(a_problem(), "eplb")
        await planner.answer(a_problem(), "eplb")
        assert pid_of(planner) != killed
        assert not is_there(killed)


@asynchronous
async def test_a_process_that_nobody_waits_for_is_ended() -> None:
    with closing(ProcessPlanner(1)) as planner:
        await planner.answer(a_problem(), "eplb")
        pid = pid_of(planner)
        os.kill(pid, signal.SIGSTOP)  # so that it never answers
        asked = asyncio.create_task(planner.answer(a_problem(), "eplb"))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not is_there(pid)
        await planner.answer(a_problem(), "eplb")


@asynchronous
async def test_one_process_has_one_problem_at_a_time() -> None:
    with closing(ProcessPlanner(1)) as planner:
        await asyncio.gather(*(planner.answer(a_problem(), "eplb") for _ in range(3)))
        pid = pid_of(planner)
    assert not is_there(pid)


@in_virtual_time
async def test_the_loop_tells_of_a_planner_that_died_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(confirmations=1)
    with closing(ProcessPlanner(1)) as planner:
        monkeypatch.setattr(world.loop, "planner", planner)
        world.count(SKEWED)
        await planner.answer(a_problem(), "eplb")
        os.kill(pid_of(planner), signal.SIGKILL)
        await world.tick()
        assert world.loop.conditions[POOL].startswith("the process that planned died (signal 9)")
        await world.tick()
    assert (world.loop.conditions, decided(world)[0]) == ({}, "propose")


@asynchronous
async def test_a_bug_in_a_planner_is_told_with_its_trace() -> None:
    with closing(ProcessPlanner(1)) as planner:
        with pytest.raises(RuntimeError, match=r"Traceback(.|\n)*AttributeError"):
            await planner.answer(None, "eplb")  # type: ignore[arg-type]
        assert isinstance(await planner.answer(a_problem(), "eplb"), Plan | Hold)
