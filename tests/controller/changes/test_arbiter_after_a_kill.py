import pytest

from controller.changes.plans import PlanState
from controller.fleet.workers import FORGOTTEN_S
from controller.ledger.ledger import LedgerFull
from placer.plan import Plan
from tests.controller.tiny_pool import GOAL, HOME, OTHER, POOL, KilledError, World, in_virtual_time


@pytest.mark.parametrize("kind", ["plan", "operation"])
@in_virtual_time
async def test_a_plan_and_its_operation_begin_together_or_not_at_all(kind: str) -> None:
    world = World()
    plan = world.arbiter.propose(POOL, Plan(GOAL), "", "an operator's plan")
    plan = world.arbiter.plans.approve(plan.id, 0, "go")
    world.disk.is_full_for = kind
    with pytest.raises(LedgerFull):
        await world.arbiter.begin(plan, "", "go")
    assert (world.states(), bool(world.arbiter.running)) == ({"plan-1": "approved"}, False)
    world.disk.is_full_for = ""
    await world.arbiter.begin(plan, "", "go")
    await world.arbiter.settle()
    assert world.states() == {"plan-1": "applied"}


@in_virtual_time
async def test_what_a_killed_controller_left_is_gone_on_with_once_the_pool_is_heard() -> None:
    world = World()
    world.engines.moods = {5: "killed"}
    await world.apply(GOAL)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    world.start()
    world.fleet.pools.clear()
    await world.arbiter.resume()
    await world.arbiter.settle()
    assert (len(world.engines.asked), bool(world.arbiter.running)) == (6, True)
    world.hear()
    await world.arbiter.resume()
    await world.arbiter.settle()
    assert (world.states(), world.stand_at(GOAL)) == ({"plan-1": "applied"}, True)


@in_virtual_time
async def test_an_operation_whose_pool_stays_away_ends_so_that_others_may_begin() -> None:
    world = World()
    world.engines.moods = {5: "killed"}
    await world.apply(GOAL)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    world.start()
    world.fleet.pools.clear()
    world.engines.engines.clear()
    await world.clock.sleep(FORGOTTEN_S + 1)
    await world.arbiter.resume()
    await world.arbiter.settle()
    assert (world.states(), bool(world.arbiter.running)) == ({"plan-1": "halted"}, False)


@pytest.mark.parametrize("phase", ["succeeded", "rolled back"])
@in_virtual_time
async def test_killed_before_the_plan_was_told_it_is_told_later(phase: str) -> None:
    world = World()
    await world.apply(OTHER)
    await world.arbiter.settle()
    world.engines.moods = {} if phase == "succeeded" else {len(world.engines.asked): "refused"}
    await world.apply(GOAL)
    world.disk.is_full_for = "plan"
    with pytest.raises(LedgerFull):
        await world.arbiter.settle()
    assert world.arbiter.history.get("op-2").value.phase == phase
    assert world.states() == {"plan-1": "applied", "plan-2": "applying"}
    world.disk.is_full_for = ""
    world.start()
    await world.arbiter.resume()
    told = {"succeeded": ("superseded", "applied"), "rolled back": ("applied", "rolled back")}
    assert tuple(world.states().values()) == told[phase]


@in_virtual_time
async def test_killed_before_the_plan_was_told_of_its_rollback_it_is_told_later() -> None:
    world = World()
    await world.apply(GOAL)
    await world.arbiter.settle()
    await world.arbiter.rollback(POOL, "", "back")
    world.disk.is_full_for = "plan"
    with pytest.raises(LedgerFull):
        await world.arbiter.settle()
    assert (world.stand_at(HOME), world.states()) == (True, {"plan-1": "applied"})
    world.disk.is_full_for = ""
    world.start()
    await world.arbiter.resume()
    assert world.states() == {"plan-1": "rolled back"}


@in_virtual_time
async def test_killed_between_two_plans_one_is_applied_and_one_superseded() -> None:
    """The older was told already, the newer not."""
    world = World()
    await world.apply(OTHER)
    await world.arbiter.settle()
    await world.apply(GOAL)
    world.disk.is_full_for = "plan"
    with pytest.raises(LedgerFull):
        await world.arbiter.settle()
    world.disk.is_full_for = ""
    world.arbiter.plans.change_state(
        world.arbiter.plans.get("plan-1"), PlanState.SUPERSEDED, "plan-2"
    )
    world.start()
    for _ in range(2):
        await world.arbiter.resume()
        assert world.states() == {"plan-1": "superseded", "plan-2": "applied"}
