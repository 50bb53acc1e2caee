"""A pool whose size follows its load: what is proposed, begun, asked for and written down."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from controller.changes.operations import Scale
from controller.engines.in_memory import MemoryEngine
from controller.engines.memory_capacity import MemoryCapacity
from controller.fleet.pools import WorkerId
from controller.loop import AGAIN_S
from controller.samples import Histogram, Sample
from controller.size_settings import Autoscale
from placer.errors import PlacementError
from tests.controller.tiny_pool import (
    BYTES,
    HOME,
    POOL,
    World,
    a_delta,
    a_registration,
    decided,
    in_virtual_time,
)

SETTINGS = Autoscale(
    "horizontal", least=1, most=8, requests=4.0, window_s=1.0, stabilisation_s=0.0, cooldown_s=5.0
)


class Loaded(World):
    """One engine of two ranks that can change its width. Its requests are counted from 0."""

    def __init__(self, live: Sequence[str] = ("can_resize",), **policy: Any) -> None:
        self.live: dict[str, Any] = dict.fromkeys(live, True)
        super().__init__([HOME], **{"autoscale": SETTINGS, **policy})

    def hear(self) -> None:
        for engine in self.homes:
            self.fleet.register(a_registration(engine, actor="there", **self.live))

    def load(self, running: float, **more: Any) -> None:
        first = Histogram((1.0,), (0.0, 0.0))
        self.engines.samples[POOL, "e0"] = Sample(ttft=first, running=running, **more)

    async def look(self, after_s: float = 1.0) -> tuple[str, str]:
        """Once more at its size."""
        await self.clock.sleep(after_s)
        self.hear()
        await self.loop.look_at_sizes()
        await self.arbiter.settle()
        decision = self.loop.views[POOL, 2].decisions["autoscale"]
        return decision.outcome, decision.reason

    def scalings(self) -> list[int]:
        """Widths that were begun, oldest first."""
        records = reversed(self.disk.newest("operation"))
        changes = [record.value.change for record in records]
        return [one.ranks for one in changes if isinstance(one, Scale)]


def written(world: World) -> list[tuple[str, str]]:
    found = reversed(world.disk.newest("decision"))
    return [(one.value.outcome, one.reason) for one in found if one.value.policy == "autoscale"]


@in_virtual_time
async def test_an_advisor_proposes_a_width_and_begins_nothing() -> None:
    world = Loaded()
    world.load(12.0)
    reason = (
        "2 ranks -> 4 ranks: 12.0 requests, 6.00 a rank for 4: advisory, waits for approval: "
        "placer scale chat --ranks 4"
    )
    for _ in range(3):
        assert await world.look() == ("propose", reason)
    assert written(world) == [("propose", reason)]  # once
    assert (world.scalings(), world.engines.asked) == ([], [])
    world.load(40.0)
    assert (await world.look())[1].startswith("2 ranks -> 8 ranks: 26.0 requests")  # in the mean
    assert len(written(world)) == 2
    await world.look(AGAIN_S)
    assert len(written(world)) == 3


@in_virtual_time
async def test_an_automatic_pool_begins_it_and_rests_twice_as_long_for_each_that_was_refused() -> (
    None
):
    async def no_way(*_: object) -> NoReturn:
        raise PlacementError("no way there")

    world = Loaded(mode="automatic")
    world.loop.loads.planner.resized = no_way  # type: ignore[method-assign, assignment]
    world.load(12.0)
    outcome, reason = await world.look()
    assert outcome == "act"
    assert reason == "op-1: 2 ranks -> 4 ranks: 12.0 requests, 6.00 a rank for 4"
    assert world.scalings() == [4]
    outcome, reason = await world.look()
    assert outcome == "wait"
    assert reason.endswith("and 1 in a row failed, 9.0 s of cooldown_s are left")
    await world.look(10.0)
    assert world.scalings() == [4, 4]


@in_virtual_time
async def test_a_width_that_its_hardware_cannot_have_is_not_wanted() -> None:
    """Nodes have two GPUs: three requests' worth of ranks are four, and five are six."""
    world = Loaded()
    for running, ranks in ((12.0, 4), (20.0, 6), (4.0, 1)):
        world.load(running)
        await world.look(2.0)
        assert (await world.look(2.0))[1].startswith(f"2 ranks -> {ranks} ranks: ")


@in_virtual_time
async def test_hours_and_frozen_budgets_keep_it_as_it_is() -> None:
    world = Loaded(mode="automatic", bytes_per_minute=0)
    world.load(12.0)
    outcome, reason = await world.look()
    assert (outcome, world.scalings()) == ("wait", [])
    assert reason.endswith("bytes_per_minute is 0: frozen")


@in_virtual_time
async def test_engines_that_did_not_register_that_they_can_are_not_asked_to() -> None:
    world = Loaded(live=(), mode="automatic")
    world.load(12.0)
    outcome, reason = await world.look()
    assert (outcome, world.scalings()) == ("propose", [])
    assert reason.startswith("2 ranks -> 2 x 2 ranks: ")
    assert reason.endswith("engines are started by whoever runs the pool")


@in_virtual_time
async def test_capacity_is_asked_for_and_waited_for_and_given_back() -> None:
    world = Loaded(mode="automatic")
    world.capacity = MemoryCapacity(world.clock, limit=8, comes_s=30.0)
    world.capacity.serve(POOL, active=2, traffic=2)
    await world.capacity.ask(POOL, 2)
    await world.clock.sleep(30.0)
    world.start()
    world.load(12.0)
    outcome, reason = await world.look()
    assert outcome == "wait"
    assert reason.endswith("4 GPUs are asked for, 2 available")
    await world.look(30.0)
    assert world.scalings() == [4]  # which no engine does here: it stays at 2
    world.load(8.0)
    await world.look()
    assert (await world.look())[0] == "hold"
    assert (await world.capacity.ready(POOL)).desired == 2


@in_virtual_time
async def test_while_another_pool_is_changed_a_size_waits() -> None:
    world = Loaded(mode="automatic", confirmations=1, bytes_per_minute=1)
    world.engines.engines["code", "e0"] = MemoryEngine(HOME, BYTES)
    world.fleet.register(a_registration(pool="code", actor="there"))
    world.load(12.0)
    world.fleet.push(WorkerId("code", "e0", "w0", 1), 1, [a_delta([[400, 400, 100, 100]] * 2)])
    await world.loop.tick()
    await world.loop.look_at_sizes()
    decision = world.loop.views[POOL, 2].decisions["autoscale"]
    assert (decision.outcome, world.scalings()) == ("wait", [])
    assert decision.reason.endswith("op-1 is at work on code")


@in_virtual_time
async def test_what_begins_while_a_size_is_planned_is_waited_for() -> None:
    world = Loaded(mode="automatic", confirmations=1, bytes_per_minute=1)
    world.engines.engines["code", "e0"] = MemoryEngine(HOME, BYTES)
    world.fleet.register(a_registration(pool="code", actor="there"))
    world.load(12.0)
    world.fleet.push(WorkerId("code", "e0", "w0", 1), 1, [a_delta([[400, 400, 100, 100]] * 2)])
    planner = world.loop.loads.planner
    resized = planner.resized

    async def meanwhile(*asked: Any) -> Any:
        code = world.fleet.pools["code"].group()
        assert code is not None
        await world.loop._look(code)
        await world.loop.turns.look()
        return await resized(*asked)

    planner.resized = meanwhile  # type: ignore[method-assign, assignment]
    await world.loop.look_at_sizes()
    decision = world.loop.views[POOL, 2].decisions["autoscale"]
    assert (decision.outcome, world.scalings()) == ("wait", [])
    assert "chat: size" not in world.loop.told()
    assert "op-1 is at work on code" in decision.reason


@in_virtual_time
async def test_while_a_change_is_at_work_its_pool_is_not_resized() -> None:
    world = Loaded(mode="automatic", confirmations=1, bytes_per_minute=1)
    world.load(12.0)
    world.count([[400, 400, 100, 100]] * 2)
    await world.loop.tick()
    await world.loop.look_at_sizes()
    assert decided(world)[0] == "act"
    assert (world.scalings(), world.states()) == ([], {"plan-1": "applying"})


@in_virtual_time
async def test_an_engine_that_says_nothing_is_a_condition() -> None:
    world = Loaded()
    await world.loop.look_at_sizes()
    assert world.loop.told() == {"chat: size": "e0 of chat says nothing of its load"}
    world.load(8.0)
    assert (await world.look())[0] == "hold"
    assert world.loop.told() == {}


@in_virtual_time
async def test_the_loop_looks_at_sizes_more_often_than_at_plans() -> None:
    world = Loaded()
    world.load(8.0)
    seen: list[float] = []
    real = world.engines.sample

    async def sample(pool: str, engine: str) -> Sample:
        seen.append(world.clock.monotonic())
        return await real(pool, engine)

    world.engines.sample = sample  # type: ignore[method-assign]
    world.config = replace(world.config, every_s=10.0)
    world.start()
    with pytest.raises(TimeoutError):
        async with world.clock.timeout(5.5):
            await world.loop.run()
    assert seen == [1.0, 2.0, 3.0, 4.0, 5.0]
