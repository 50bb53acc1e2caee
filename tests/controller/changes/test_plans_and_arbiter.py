import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.changes.arbiter import BusyError
from controller.changes.operations import Scale
from controller.engines.vllm_engines import lean
from controller.fleet.workers import FleetError, UnknownError
from controller.ledger.ledger import Conflict, Record
from placer.errors import FileError, PlacementError
from placer.files.plans import parse_plan
from placer.placement import Placement
from placer.plan import Move, Plan, Provenance
from tests.builders import a_placement
from tests.controller.tiny_pool import (
    BEGIN_S,
    BYTES,
    GOAL,
    HOME,
    OTHER,
    POOL,
    World,
    a_registration,
    in_virtual_time,
)

WIDER = Scale(4, 2), None, ""  # which these engines cannot be


def propose(world: World, placement: Placement = GOAL, before: str = "") -> Record[Any]:
    return world.arbiter.propose(POOL, Plan(placement), before, "an operator's plan")


def reasons(world: World, id: str) -> list[tuple[str, str]]:
    """The plan's life: states, and why it came to each."""
    return [(one.value.state, one.reason) for one in world.disk.versions("plan", id)]


@in_virtual_time
async def test_the_life_of_a_plan() -> None:
    world = World()
    plan = propose(world)
    assert (plan.id, plan.value.digest, plan.value.before) == ("plan-1", GOAL.digest, "")
    plan = world.arbiter.plans.approve("plan-1", plan.version, "ann looked at it")
    operation = await world.arbiter.begin(plan, "", "it is time")
    assert (operation.id, operation.value.kind, world.states()) == (
        "op-1", "apply", {"plan-1": "applying"},
    )  # fmt: skip
    await world.arbiter.settle()
    assert reasons(world, "plan-1") == [
        ("proposed", "an operator's plan"),
        ("approved", "ann looked at it"),
        ("applying", "it is time"),
        ("applied", "op-1 succeeded"),
    ]
    assert world.stand_at(GOAL)
    assert (world.arbiter.totals.ended, world.arbiter.totals.moved) == (
        {(POOL, "succeeded"): 1},
        {(POOL,): 8},
    )


def test_a_plan_is_kept_with_its_file() -> None:
    world = World()
    world.arbiter.propose(POOL, Plan(GOAL, reason="because"), "", "why not")
    kept = parse_plan(world.arbiter.plans.file("plan-1").decode(), "plan-1")
    assert (kept.placement.digest, kept.reason) == (GOAL.digest, "because")
    assert world.ledger.placement(GOAL.digest).digest == GOAL.digest
    with pytest.raises(UnknownError, match="no plan 'plan-2': `placer history` lists them"):
        world.arbiter.plans.file("plan-2")


def test_agents_get_a_plan_without_what_only_people_read() -> None:
    move = Move(0, 1, 0, 1, 2, "GPU 0 carried 1.6x the mean load")
    plan = Plan(GOAL, moves=(move,), notes=("a note",), provenance=Provenance("eplb"))
    told = parse_plan(lean(plan), "lean")
    assert (told.placement.digest, told.moves, told.notes) == (GOAL.digest, (), ())
    assert told.provenance is None
    assert plan.gain is None


@in_virtual_time
async def test_numbers_go_on_whichever_was_written_last() -> None:
    world = World()
    for number in (1, 2, 3):
        assert propose(world).id == f"plan-{number}"
        assert (await world.arbiter.scale(POOL, WIDER, "", "more")).id == f"op-{number}"


@in_virtual_time
async def test_no_number_is_given_twice_also_when_all_that_had_one_is_forgotten() -> None:
    world = World()
    for _ in range(3):
        propose(world)
        await world.arbiter.scale(POOL, WIDER, "", "more")
    for kind in ("plan", "operation"):
        world.disk.prune(kind, 0, 2 * BEGIN_S)
    world.disk._connection.execute("DELETE FROM records WHERE kind = 'plan'")
    for _ in range(2):
        world.start()
        world.disk.prune("operation", 0, 2 * BEGIN_S)
        ids = propose(world).id, (await world.arbiter.scale(POOL, WIDER, "", "more")).id
        world.disk._connection.execute("DELETE FROM records WHERE kind = 'plan'")
    assert ids == ("plan-5", "op-5")


@pytest.mark.parametrize("count", ["DELETE FROM records", "UPDATE records SET body = ''"])
def test_numbers_go_on_where_nothing_counted_them(count: str) -> None:
    """As in a ledger of 0.1.0, also beside ids that are no numbers."""
    world = World()
    for _ in range(12):
        propose(world)
    world.disk._connection.execute(f"{count} WHERE kind = 'ids'")
    for id in ("plan-x", "plan", "plan-", "plan-7-9", "plan-" + "9" * 99):
        world.disk.put(replace(world.arbiter.plans.get("plan-12"), id=id, version=1, final=True))
    world.start()
    assert propose(world).id == "plan-13"


@in_virtual_time
async def test_decisions_of_one_moment_are_several() -> None:
    """Also when the clock is set back to it."""
    world = World()
    for engine in world.homes.values():
        engine.is_gone = True
    for is_gone in (True, False):
        world.count([[400, 400, 100, 100]] * 2)
        world.homes["e0"].is_gone = is_gone
        await world.tick()
    told = [(record.id, record.value.outcome) for record in world.disk.newest("decision")]
    assert told == [("decision-2", "wait"), ("decision-1", "hold")]
    assert world.loop.conditions == {}


def test_a_new_plan_takes_the_place_of_those_that_wait() -> None:
    world = World()
    propose(world)
    world.arbiter.plans.approve(propose(world).id, 0, "go")
    propose(world)
    assert world.states() == {
        "plan-1": "superseded", "plan-2": "superseded", "plan-3": "proposed",
    }  # fmt: skip
    assert reasons(world, "plan-1")[-1][1] == "plan-2 takes its place"
    with pytest.raises(FleetError, match="plan-1 is superseded: only a proposed plan can be"):
        world.arbiter.plans.approve("plan-1", 0, "too late")


def test_of_two_operators_one_approves_and_the_other_is_told() -> None:
    world = World()
    seen = propose(world)
    world.arbiter.plans.approve(seen.id, seen.version, "ann")
    with pytest.raises(Conflict, match="plan-1 is at version 2 and not 1: somebody was first"):
        world.arbiter.plans.approve(seen.id, seen.version, "bob")
    assert reasons(world, "plan-1")[1:] == [("approved", "ann")]
    assert world.arbiter.plans.approve(seen.id, 0, "whichever is newest").version == 2


@pytest.mark.parametrize(
    ("placement", "why"),
    [
        (a_placement([[0, 1, 2, 3]]), r"1 layers x 4 experts and the engine serves tiny, 2 layers"),
        (a_placement([[0, 1]] * 2, experts=2), r"2 layers x 2 experts and the engine serves tiny"),
        (a_placement([[0, 1, 2, 3]] * 2, gpus=4), r"for 4 ranks and the engine has 2"),
        (a_placement([[0, 1, 2, 3, 0, 1]] * 2), r"6 slots a layer and the engine 4"),
        (a_placement([[0, 1, 2, 3], [0, 1, 2, 2]]), r"layer 1: no slot holds expert 3"),
        (a_placement([[0, 1, 2, -1]] * 2), r"leaves 2 slots empty"),
        (a_placement([[0, 1, 2, 3]] * 2, nodes=2), r"2 GPUs in 2 nodes but by hand has 2 in 1"),
    ],
)
def test_a_plan_that_must_not_be_applied_is_not_even_proposed(
    placement: Placement, why: str
) -> None:
    world = World()
    with pytest.raises(PlacementError, match=why):
        propose(world, placement)
    assert world.states() == {}


def test_two_copies_on_one_rank_are_refused() -> None:
    world = World([a_placement([[0, 1, 2, 0, 3, 1]] * 2)])
    world.fleet.pools.clear()
    world.fleet.register(a_registration(slots=6))
    with pytest.raises(PlacementError, match="layer 0: GPU 0 holds expert 0 2 times"):
        propose(world, a_placement([[0, 0, 1, 1, 2, 3]] * 2))


def test_an_engine_whose_balancer_is_off_takes_no_plan() -> None:
    world = World()
    world.fleet.register(a_registration("e1", can_apply=False))
    with pytest.raises(PlacementError, match="load balancer is off"):
        propose(world)


def test_a_plan_for_a_pool_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnknownError, match="no pool 'code': there is chat"):
        World().arbiter.propose("code", Plan(GOAL), "", "why not")


@in_virtual_time
async def test_one_operation_at_a_time() -> None:
    world = World()
    await world.apply(GOAL)
    with pytest.raises(BusyError, match=r"op-1 is at work on chat \(e0: staging\): wait for it"):
        await world.apply(OTHER)
    assert world.states() == {"plan-1": "applying", "plan-2": "approved"}
    await world.arbiter.settle()
    assert world.arbiter.running is None
    await world.arbiter.begin(world.arbiter.plans.get("plan-2"), "", "now")
    await world.arbiter.settle()
    assert world.states() == {"plan-1": "superseded", "plan-2": "applied"}
    assert world.stand_at(OTHER)


@in_virtual_time
async def test_a_plan_from_a_map_that_stands_no_longer_is_refused() -> None:
    world = World()
    stale = propose(world, GOAL, before=OTHER.digest)
    with pytest.raises(FleetError, match="plan-1 starts from another map than the pool's now"):
        await world.arbiter.begin(world.arbiter.plans.approve(stale.id, 0, "go"), "", "go")
    assert (world.states(), world.engines.asked) == ({"plan-1": "superseded"}, [])
    fresh = propose(world, GOAL, before=HOME.digest)
    await world.arbiter.begin(world.arbiter.plans.approve(fresh.id, 0, "go"), "", "go")
    await world.arbiter.settle()
    assert world.stand_at(GOAL)


@in_virtual_time
async def test_an_operation_that_fails_takes_its_plan_back() -> None:
    world = World()
    world.engines.moods = {4: "refused"}
    await world.apply(GOAL)
    await world.arbiter.settle()
    why = "e0: committing, round 1 of 2: not today"
    assert reasons(world, "plan-1")[-1] == ("rolled back", why)
    assert (world.stand_at(HOME), world.arbiter.totals.ended) == (True, {(POOL, "rolled back"): 1})


@in_virtual_time
async def test_the_plan_of_a_halted_operation_is_halted() -> None:
    world = World()
    await world.apply(GOAL)
    world.homes["e1"].is_gone = True
    await world.arbiter.settle()
    assert world.states() == {"plan-1": "halted"}
    world.homes["e1"].is_gone = False
    await world.arbiter.rollback(POOL, "", "ann tidies up")
    await world.arbiter.settle()
    assert world.stand_at(HOME)


@in_virtual_time
async def test_a_rollback_ends_the_operation_that_runs() -> None:
    world = World(bytes_per_minute=BYTES)
    begun = await world.apply(GOAL)
    await asyncio.sleep(0)
    assert world.engines.names[-1] == "e0 Copy"
    same = await world.arbiter.rollback(POOL, "key-1", "ann wants it back")
    assert same.id == begun.id
    await world.arbiter.settle()
    assert reasons(world, "plan-1")[-1] == ("rolled back", "ann wants it back")
    assert world.stand_at(HOME)
    again = await world.arbiter.rollback(POOL, "key-1", "ann did not hear the answer")
    assert (again.id, again.value.phase) == ("op-1", "rolled back")
    await world.apply(GOAL)  # what was said of the one is not said of the next
    await world.arbiter.settle()
    assert world.stand_at(GOAL)


@in_virtual_time
async def test_a_rollback_brings_the_pool_to_where_it_was_before_its_last_plan() -> None:
    world = World()
    for placement in (OTHER, GOAL):
        await world.apply(placement)
        await world.arbiter.settle()
    operation = await world.arbiter.rollback(POOL, "", "it is slower")
    await world.arbiter.settle()
    assert (operation.value.kind, operation.value.plan_id) == ("rollback", "plan-2")
    assert world.stand_at(OTHER)
    assert world.states() == {"plan-1": "applied", "plan-2": "rolled back"}


@in_virtual_time
async def test_what_was_never_changed_cannot_be_rolled_back() -> None:
    world = World()
    world.engines.moods = {0: "refused"}
    await world.apply(GOAL)  # goes back by itself
    await world.arbiter.settle()
    with pytest.raises(FleetError, match="chat was never changed: there is nothing to roll back"):
        await world.arbiter.rollback(POOL, "", "why not")


@in_virtual_time
async def test_the_same_key_is_the_same_operation() -> None:
    world = World()
    first = await world.apply(GOAL, key="ann-7")
    plan = world.arbiter.plans.get("plan-1")
    assert (await world.arbiter.begin(plan, "ann-7", "again")).id == first.id
    await world.arbiter.settle()
    assert (await world.arbiter.begin(plan, "ann-7", "and again")).value.phase == "succeeded"
    back = await world.arbiter.rollback(POOL, "ann-8", "back")
    await world.arbiter.settle()
    assert (await world.arbiter.rollback(POOL, "ann-8", "again")).id == back.id == "op-2"
    assert [world.arbiter.history.known(key) for key in ("", "bob-1")] == [None, None]
    assert world.stand_at(HOME)


@in_virtual_time
async def test_of_two_who_begin_at_once_one_does() -> None:
    world = World()
    plan = world.arbiter.plans.approve(propose(world).id, 0, "go")
    same = await asyncio.gather(*(world.arbiter.begin(plan, "key", "go") for _ in range(2)))
    assert [one.id for one in same] == ["op-1", "op-1"]
    await world.arbiter.settle()
    assert len(world.disk.newest("operation")) == 1


@in_virtual_time
async def test_a_change_is_dated_by_the_end_of_its_operation() -> None:
    world = World(bytes_per_minute=2 * BYTES)  # four rounds of a minute
    assert world.arbiter.history.last_changes(POOL) == (None, 0)
    await world.apply(GOAL)
    assert world.arbiter.history.last_changes(POOL) == (None, 0)
    await world.arbiter.settle()
    await world.clock.sleep(5.0)
    await world.arbiter.scale(POOL, WIDER, "", "more")
    last, failures = world.arbiter.history.last_changes(POOL)
    assert last is not None
    assert (last.at_s, world.ledger.age_s(last), failures) == (BEGIN_S + 240, 5.0, 0)
    assert world.arbiter.history.last_changes("code") == (None, 0)


@in_virtual_time
async def test_a_width_cannot_be_changed_and_that_is_written_down() -> None:
    world = World()
    record = await world.arbiter.scale(POOL, WIDER, "key-1", "ann wants 4")
    assert (record.final, record.value.phase) == (True, "refused")
    assert record.value.why.startswith("chat stays at 2 ranks: e0 cannot change its width")
    assert (bool(world.arbiter.running), world.arbiter.history.known("key-1")) == (False, record)
    assert world.arbiter.history.get("op-1") == record
    with pytest.raises(UnknownError, match="no operation 'op-2'"):
        world.arbiter.history.get("op-2")


def test_a_plan_that_waits_is_kept_and_one_that_does_not_may_be_pruned() -> None:
    world = World()
    propose(world)
    propose(world)
    assert [one.final for one in world.disk.newest("plan")] == [True, False]


def test_a_plan_whose_file_was_changed_is_not_read() -> None:
    world = World()
    text = (
        world.arbiter.plans.file(propose(world).id).decode().replace("[0, 2, 1, 3]", "[0, 1, 2, 3]")
    )
    with pytest.raises(FileError, match="the map was changed"):
        parse_plan(text, "plan-1")
    assert np.array_equal(
        parse_plan(world.arbiter.plans.file("plan-1").decode(), "").placement.copies, GOAL.copies
    )
