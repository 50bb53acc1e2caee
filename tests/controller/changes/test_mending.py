"""What the controller makes of engines whose map breaks a rule."""

from dataclasses import replace

import pytest

from controller.config import Hours
from controller.engines.in_memory import MemoryEngine
from controller.fleet.workers import FleetError
from controller.policies.policy import Past, Seen
from controller.policies.rebalance import rebalance
from placer.checks import violations
from placer.objective import Objective
from placer.plan import Plan
from tests.builders import a_placement
from tests.controller.tiny_pool import (
    BYTES,
    GOAL,
    HOME,
    POOL,
    TICK_S,
    World,
    a_policy,
    a_registration,
    decided,
    in_virtual_time,
)

EVEN = [[250] * 4] * 2
TWICE = a_placement([[0, 1, 2, 3, 3, 0], [0, 1, 2, 3, 0, 1]])
LOST = a_placement([[0, 1, 2, 0], [0, 1, 2, 3]])


class WithReplicas(World):
    """Engines of 6 slots a layer."""

    def hear(self) -> None:
        for engine in self.homes:
            self.fleet.register(a_registration(engine, actor="there", slots=6))


@pytest.mark.parametrize("mode", ["advisory", "automatic"])
@in_virtual_time
async def test_a_map_that_breaks_a_rule_is_mended_at_the_first_look(mode: str) -> None:
    world = WithReplicas((TWICE, TWICE), mode=mode, confirmations=2, horizon_s=0.0)
    world.count(EVEN)
    await world.tick()
    outcome, reason = decided(world)
    assert reason.startswith("plan-1: mends: expert 3 of layer 0 was on GPU 1 more than once; ")
    if mode == "advisory":
        assert (outcome, world.states()) == ("propose", {"plan-1": "proposed"})
        assert (world.engines.asked, world.stand_at(TWICE)) == ([], True)
        return
    assert (outcome, world.states()) == ("act", {"plan-1": "applied"})
    for engine in world.homes.values():
        assert violations(engine.placement, Objective()) == []
    await world.tick(TICK_S)
    assert decided(world)[0] == "hold"


@in_virtual_time
async def test_what_does_not_fit_into_max_moved_is_infeasible_and_says_what_does() -> None:
    world = WithReplicas((TWICE, TWICE), mode="automatic", max_moved=0.05)
    world.count(EVEN)
    await world.tick()
    outcome, reason = decided(world)
    assert (outcome, world.engines.asked) == ("infeasible", [])
    assert reason.endswith("needs max_moved 0.084 or more")


@in_virtual_time
async def test_a_lost_expert_is_planned_for_but_no_engine_is_asked_to_copy_it() -> None:
    world = World((LOST, LOST), mode="automatic", horizon_s=0.0)
    world.count(EVEN)
    await world.tick()
    assert decided(world)[1].startswith("plan-1: mends: expert 3 of layer 0 was lost; 1 moved")
    assert (world.states(), world.engines.asked) == ({"plan-1": "approved"}, [])
    assert world.loop.conditions == {
        "chat: approved plans": "no rank of e0 holds expert 3 of layer 0 to copy it from: start "
        "the engine again, so that it loads all experts from the checkpoint"
    }
    with pytest.raises(FleetError, match="no rank of e0 holds expert 3 of layer 0"):
        await world.apply(HOME)
    # Started again, with their first map.
    world.homes |= {name: MemoryEngine(HOME, BYTES) for name in world.homes}
    world.engines.engines |= {(POOL, name): engine for name, engine in world.homes.items()}
    await world.tick(TICK_S)
    assert (decided(world)[0], world.loop.conditions) == ("hold", {})


def test_mending_needs_no_confirmation_but_keeps_to_the_hours() -> None:
    plan = Plan(
        GOAL, "mends: expert 3 of layer 0 was lost", mends=("expert 3 of layer 0 was lost",)
    )
    policy = a_policy(mode="automatic", confirmations=5)
    assert rebalance(Seen(plan, Past(), policy, 0.0)).outcome == "act"
    assert rebalance(Seen(plan, Past(rested_s=1.0), policy, 1.0)).outcome == "wait"
    closed = replace(policy, hours=(Hours(60, 120),))
    assert rebalance(Seen(plan, Past(), closed, 0.0)).outcome == "wait"
