"""Engines of one pool may differ in width: each width has its traffic, its plan and its peace."""

from typing import Any

import pytest

from controller.changes.targets import targets_of
from controller.engines.in_memory import MemoryEngine
from controller.fleet import snapshots
from controller.fleet.pools import WorkerId
from controller.fleet.workers import Fleet, FleetError
from placer.plan import Plan
from placer.virtual_clock import VirtualClock
from placer.worker import GONE_S
from tests.builders import a_placement
from tests.controller.tiny_pool import (
    BYTES,
    GOAL,
    POOL,
    SKEWED,
    TICK_S,
    World,
    a_delta,
    a_registration,
    in_virtual_time,
)

WIDE = a_placement([[0, 1, 2, 3, 0, 1, 2, 3]] * 2, gpus=4, nodes=2)
WIDE_GOAL = a_placement([[0, 2, 1, 3, 0, 1, 2, 3]] * 2, gpus=4, nodes=2)
WIDE_SKEWED = [[800, 100, 50, 50]] * 2


class Mixed(World):
    """e0 and e1 have 2 ranks of 2 slots; w0 has 4. Nodes of 2 GPUs each."""

    wide: tuple[str, ...] = ("w0",)

    def __init__(self, *homes: Any, **policy: Any) -> None:
        super().__init__(*homes, **policy)
        for engine in self.wide:
            self.engines.engines[POOL, engine] = self.homes[engine] = MemoryEngine(WIDE, BYTES)
        self.hear()

    def hear(self) -> None:
        for engine in self.homes:
            self.say(engine, 4 if engine in self.wide else 2)

    def say(self, engine: str, ranks: int, incarnation: int = 1) -> None:
        told = a_registration(
            engine, actor="there", ep_size=ranks, slots=2 * ranks, incarnation=incarnation
        )
        self.fleet.register(told)

    def resize(self, engine: str) -> None:
        """From 2 ranks to 4."""
        self.engines.engines[POOL, engine] = self.homes[engine] = MemoryEngine(WIDE, BYTES)
        self.wide = (*self.wide, engine)
        self.hear()

    def decided(self, ranks: int) -> tuple[str, str]:
        decision = self.loop.views[POOL, ranks].decision
        return decision.outcome, decision.reason

    def stands(self, engine: str) -> str:
        return self.homes[engine].placement.digest


@in_virtual_time
async def test_each_width_has_its_traffic_and_its_plan() -> None:
    world = Mixed(confirmations=1)
    world.count(SKEWED)
    world.count(WIDE_SKEWED, "w0")
    pool = world.fleet.pool(POOL)
    assert [(one.ranks, one.slots, list(one.engines), one.tokens("mixed"))
            for one in pool.groups.values()] == [
        (2, 4, ["e0", "e1"], 1000), (4, 8, ["w0"], 1000),
    ]  # fmt: skip
    await world.tick()
    plans = [one.value for one in reversed(world.disk.newest("plan"))]
    assert [(one.width, one.engines) for one in plans] == [(2, ("e0", "e1")), (4, ("w0",))]
    assert [world.ledger.placement(one.digest).gpus for one in plans] == [2, 4]
    assert world.states() == {"plan-1": "proposed", "plan-2": "proposed"}
    assert {one.value.width for one in world.disk.newest("decision")} == {2, 4}
    assert world.loop.conditions == {}


@in_virtual_time
async def test_a_plan_goes_to_engines_of_its_width_alone() -> None:
    world = Mixed()
    await world.apply(GOAL)
    await world.arbiter.settle()
    assert [world.stands(one) for one in ("e0", "e1", "w0")] == [
        GOAL.digest, GOAL.digest, WIDE.digest,
    ]  # fmt: skip
    await world.apply(WIDE_GOAL)
    await world.arbiter.settle()
    assert [world.stands(one) for one in ("e0", "w0")] == [GOAL.digest, WIDE_GOAL.digest]
    assert world.states() == {"plan-1": "applied", "plan-2": "applied"}  # one for each width
    await world.arbiter.rollback(POOL, "", "it is slower")
    await world.arbiter.settle()
    assert [world.stands(one) for one in ("e0", "w0")] == [GOAL.digest, WIDE.digest]
    assert world.states() == {"plan-1": "applied", "plan-2": "rolled back"}


@in_virtual_time
async def test_after_a_change_of_one_width_the_other_need_not_wait() -> None:
    world = Mixed(mode="automatic", confirmations=1)
    await world.apply(GOAL)
    await world.arbiter.settle()
    world.count([[400, 100, 400, 100]] * 2)
    world.count(WIDE_SKEWED, "w0")
    await world.tick()
    assert "s of cooldown_s are left" in world.decided(2)[1]
    assert world.decided(4)[0] == "act"


@in_virtual_time
async def test_an_engine_that_is_resized_while_a_plan_waits_is_left_out_of_it() -> None:
    world = Mixed(confirmations=1)
    world.count(SKEWED)
    await world.tick()
    world.resize("e1")
    world.count(SKEWED)
    await world.tick(TICK_S)
    outcome, reason = world.decided(2)
    assert outcome == "propose"
    assert reason.startswith("plan-1 waits for approval: ")
    assert reason.endswith("; left out: e1 has 4 ranks now")
    world.arbiter.plans.approve("plan-1", 0, "go")
    await world.tick(TICK_S)
    applying, applied = world.disk.versions("plan", "plan-1")[2:]
    assert applying.reason == "go; left out: e1 has 4 ranks now"
    assert (applied.value.state, world.stands("e1")) == ("applied", WIDE.digest)
    assert list(targets_of(world.disk, world.arbiter.history.get("op-1"))) == ["e0"]


@in_virtual_time
async def test_a_plan_whose_engines_were_all_resized_makes_room() -> None:
    world = Mixed()
    plan = world.arbiter.propose(POOL, Plan(GOAL), "", "an operator's plan")
    plan = world.arbiter.plans.approve(plan.id, 0, "go")
    for engine in ("e0", "e1"):
        world.resize(engine)
    with pytest.raises(FleetError, match="plan-1 is for engines of 2 ranks, and chat has none now"):
        await world.arbiter.begin(plan, "", "go")
    assert (world.states(), world.engines.asked) == ({"plan-1": "superseded"}, [])


@in_virtual_time
async def test_an_engine_that_is_resized_before_its_turn_stays_as_it_is() -> None:
    world = Mixed()

    def look(number: int) -> None:
        if world.engines.names[-1] == "e0 Verify":
            world.resize("e1")

    world.engines.after = look
    await world.apply(GOAL)
    await world.arbiter.settle()
    assert [world.stands(one) for one in ("e0", "e1")] == [GOAL.digest, WIDE.digest]
    plan = world.arbiter.plans.get("plan-1")
    assert (plan.value.state, plan.reason) == (
        "applied", "op-1 succeeded; left out: e1, resized meanwhile",
    )  # fmt: skip


@in_virtual_time
async def test_while_its_ranks_do_not_agree_an_engine_is_in_no_plan() -> None:
    """Rank 0 of e1 has heard that there are 4 now, rank 1 not yet; then it is gone."""
    world = Mixed()
    world.fleet.register(a_registration("e1", "r1", rank=1))
    world.say("e1", 4)
    pool = world.fleet.pool(POOL)
    assert {ranks: list(one.engines) for ranks, one in pool.groups.items()} == {
        2: ["e0"], 4: ["w0"],
    }  # fmt: skip
    await world.clock.sleep(GONE_S)
    world.say("e1", 4)
    assert list(pool.groups[4].engines) == ["e1", "w0"]


def test_what_a_width_served_goes_with_the_last_that_has_it() -> None:
    fleet = Fleet(lambda pool: 10.0, VirtualClock())
    fleet.register(a_registration())
    fleet.push(WorkerId(POOL, "e0", "w0", 1), 1, [a_delta(SKEWED)])
    pool = fleet.pool(POOL)
    assert set(pool.windows) == {2}
    fleet.register(a_registration(ep_size=4, slots=8))
    assert (pool.windows, pool.slots) == ({}, {4: 8})
    with pytest.raises(FleetError, match=r"on 4 ranks in 8 slots and w0 of e1 .* in 12 slots"):
        fleet.register(a_registration("e1", ep_size=4, slots=12))


def test_a_killed_controller_knows_the_traffic_of_each_width() -> None:
    world = Mixed()
    world.count(SKEWED)
    world.count(WIDE_SKEWED, "w0")
    world.count(WIDE_SKEWED, "w0")
    snapshots.take(world.ledger, world.fleet.pool(POOL))
    world.start()
    groups = world.fleet.pool(POOL).groups.values()
    assert {one.ranks: one.tokens("mixed") for one in groups} == {2: 1000, 4: 2000}
