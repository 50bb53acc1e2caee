from dataclasses import replace
from typing import Any

import pytest

from controller.config import Config, Hours
from controller.engines.in_memory import MemoryEngine, MemoryPlanner
from controller.fleet.pools import WorkerId
from controller.loop import AGAIN_S
from controller.policies.policy import Answer
from controller.server.messages.wire import outcome
from placer.plan import Hold, Infeasible, Plan
from tests.controller.tiny_pool import (
    BYTES,
    GOAL,
    HOME,
    OTHER,
    POOL,
    SKEWED,
    TICK_S,
    World,
    a_delta,
    a_registration,
    alike,
    decided,
    in_virtual_time,
    is_even,
)

EVEN = [[250] * 4] * 2
TURNED = [[400, 100, 400, 100]] * 2


def written(world: World, kind: str = "decision") -> list[str]:
    """Reasons, oldest first."""
    return [record.reason for record in reversed(world.disk.newest(kind))]


@in_virtual_time
async def test_without_traffic_nothing_is_decided() -> None:
    world = World()
    await world.tick()
    why = "0 tokens of mixed traffic in 300 s < 1,000 (least_tokens): too few to tell"
    assert decided(world) == ("hold", why)
    assert world.loop.conditions == {}


@in_virtual_time
async def test_few_tokens_are_no_ground_for_a_decision() -> None:
    world = World(phase="decode", window_s=60.0)
    world.count([[399, 400, 100, 100]] * 2)
    await world.tick()
    assert decided(world)[1].startswith("999 tokens of decode traffic in 60 s < 1,000")
    world.count([[1, 0, 0, 0]] * 2)
    await world.tick()
    assert decided(world)[0] == "wait"


@in_virtual_time
async def test_even_traffic_is_left_alone() -> None:
    world = World(mode="automatic", confirmations=1)
    world.count(EVEN)
    await world.tick()
    assert (decided(world)[0], world.states(), world.engines.asked) == ("hold", {}, [])
    assert world.loop.views[POOL, 2].score is not None


@in_virtual_time
async def test_an_advisor_waits_proposes_and_moves_nothing_until_it_is_approved() -> None:
    world = World()
    world.count(SKEWED)
    await world.tick()
    assert decided(world) == (
        "wait",
        "the MoE layers of a step take 37.5% less time for 4 moved slots: "
        "1 of 2 decisions in a row that want it",
    )
    for _ in range(3):
        await world.tick(TICK_S)
        assert decided(world)[0] == "propose"
    assert decided(world)[1].startswith(
        "plan-1 waits for approval: the MoE layers of a step take 37.5% less time"
    )
    assert (world.states(), world.engines.asked) == ({"plan-1": "proposed"}, [])
    plan = world.arbiter.plans.get("plan-1")
    assert (plan.value.gain, plan.value.moved) == pytest.approx((0.375, 4))
    assert plan.value.before == HOME.digest
    world.arbiter.plans.approve("plan-1", plan.version, "ann looked at it")
    await world.tick(TICK_S)
    assert (world.states(), is_even(world)) == ({"plan-1": "applied"}, True)


@in_virtual_time
async def test_a_plan_for_where_engines_were_before_a_change_is_dropped() -> None:
    world = World(confirmations=1, cooldown_s=0.0)
    planner = world.loop.planner

    class Slow(MemoryPlanner):
        async def answer(self, *asked: Any) -> Answer:
            answer = await planner.answer(*asked)
            await world.apply(GOAL)
            await world.arbiter.settle()
            return answer

    world.loop.planner = Slow(world.clock)
    world.count(SKEWED)
    await world.tick()
    assert (world.states(), world.stand_at(GOAL)) == ({"plan-1": "applied"}, True)


@in_virtual_time
async def test_a_proposal_that_nobody_approves_is_made_again_from_fresh_traffic() -> None:
    world = World(confirmations=1)
    for _ in range(11):
        world.count(SKEWED)
        await world.tick(TICK_S)
    assert world.states() == {"plan-1": "superseded", "plan-2": "proposed"}


@in_virtual_time
async def test_an_operators_proposal_is_not_pushed_aside() -> None:
    world = World(confirmations=1)
    world.arbiter.propose(POOL, Plan(OTHER), "", "ann knows better")
    world.count(SKEWED)
    await world.tick()
    assert decided(world)[1].startswith("plan-1 waits for approval: ann knows better")
    assert world.states() == {"plan-1": "proposed"}


@in_virtual_time
async def test_an_automatic_pool_acts_by_itself() -> None:
    world = World(mode="automatic")
    world.count(SKEWED)
    await world.tick()
    assert (world.engines.asked, world.states()) == ([], {})
    await world.tick(TICK_S)
    assert decided(world)[0] == "act"
    assert (world.states(), is_even(world)) == ({"plan-1": "applied"}, True)
    reasons = [record.reason for record in world.disk.versions("plan", "plan-1")]
    assert reasons[1:] == ["mode is automatic", "mode is automatic", "op-1 succeeded"]
    await world.tick(TICK_S)
    assert decided(world)[0] == "hold"


@in_virtual_time
async def test_a_decision_to_stay_begins_the_count_anew() -> None:
    world = World(mode="automatic", window_s=120.0)
    world.count(SKEWED)
    await world.tick()
    await world.tick(200.0)  # silence
    assert decided(world)[0] == "hold"
    world.count(SKEWED)
    await world.tick()
    assert decided(world)[1].endswith("1 of 2 decisions in a row that want it")
    assert world.engines.asked == []


@in_virtual_time
async def test_an_approved_plan_waits_for_its_hour_however_long_that_is() -> None:
    """It is 00:16 when the story begins."""
    world = World(confirmations=1, hours=(Hours(60, 120),))
    world.count(SKEWED)
    await world.tick()
    world.arbiter.plans.approve("plan-1", 0, "ann, in the evening")
    while world.clock.now() < 3600 - TICK_S:
        world.count(SKEWED)
        await world.tick(TICK_S)
        assert (world.states(), world.engines.asked) == ({"plan-1": "approved"}, [])
    assert decided(world)[1].startswith("plan-1 waits for its turn: ann, in the evening")
    await world.tick(TICK_S)
    assert (world.states(), is_even(world)) == ({"plan-1": "applied"}, True)


@pytest.mark.parametrize(
    ("closed", "why"),
    [
        ({"hours": (Hours(60, 120),)}, "outside the hours of change, 01:00-02:00 UTC"),
        ({"bytes_per_minute": 0}, "bytes_per_minute is 0: frozen"),
    ],
)
@in_virtual_time
async def test_an_automatic_pool_that_is_closed_waits(closed: dict[str, Any], why: str) -> None:
    world = World(mode="automatic", confirmations=1, **closed)
    world.count(SKEWED)
    await world.tick()
    assert decided(world)[0] == "wait"
    assert decided(world)[1].endswith(why)
    assert (world.states(), world.engines.asked) == ({}, [])


@in_virtual_time
async def test_after_a_change_the_pool_is_left_in_peace_for_a_while() -> None:
    world = World(mode="automatic", confirmations=1, cooldown_s=300.0, window_s=60.0)
    world.count(SKEWED)
    await world.tick()
    asked = len(world.engines.asked)
    await world.clock.sleep(60.0)
    outcomes = []
    for _ in range(8):
        assert len(world.engines.asked) == asked
        world.count(TURNED)
        world.count(TURNED)
        await world.tick(TICK_S)
        outcomes.append(decided(world)[0])
    assert outcomes == ["wait"] * 7 + ["act"]


@in_virtual_time
async def test_a_decision_that_stays_the_same_is_written_down_now_and_then() -> None:
    world = World()
    for _ in range(20):
        await world.tick(TICK_S)
    assert len(written(world)) == 1
    await world.tick(TICK_S)
    assert (len(written(world)), AGAIN_S) == (2, 20 * TICK_S)
    world.count(SKEWED)
    await world.tick(TICK_S)
    assert "1 of 2 decisions" in written(world)[-1]
    assert world.loop.counted == {(POOL, "hold"): 21, (POOL, "wait"): 1}


@in_virtual_time
async def test_while_an_operation_is_at_work_its_pool_is_not_planned_for() -> None:
    world = World(mode="automatic", confirmations=1, bytes_per_minute=BYTES)
    world.count(SKEWED)
    await world.loop.tick()
    await world.clock.sleep(0.0)  # until the first copy
    world.count(SKEWED)
    await world.loop.tick()
    assert decided(world)[0] == "wait"
    assert decided(world)[1].startswith("op-1 is at work: e0: copying, round ")
    assert world.loop.views[POOL, 2].score is not None
    await world.arbiter.settle()
    assert (world.states(), is_even(world)) == ({"plan-1": "applied"}, True)


@in_virtual_time
async def test_what_the_applied_plan_saves_is_measured_on_the_traffic_of_now() -> None:
    world = World(mode="automatic", confirmations=1, window_s=60.0)
    world.count(SKEWED)
    await world.tick()
    assert world.loop.views[POOL, 2].measured_gain is None
    await world.tick(1.0)
    view = world.loop.views[POOL, 2]
    assert (view.predicted_gain, view.measured_gain) == pytest.approx((0.375, 0.375))
    await world.clock.sleep(100.0)
    world.count(EVEN)
    await world.tick()
    view = world.loop.views[POOL, 2]
    assert (view.predicted_gain, view.measured_gain) == pytest.approx((0.375, 0.0))


def test_an_acknowledgement_is_written_once() -> None:
    world = World()
    world.loop.acknowledge(a_registration())  # that says nothing
    for _ in range(3):
        world.loop.acknowledge(a_registration(epoch=7, digest=GOAL.digest))
    assert written(world, "acknowledgement") == ["epoch 7 is applied"]
    world.start()  # a new controller
    world.loop.acknowledge(a_registration(epoch=7, digest=GOAL.digest))
    world.loop.acknowledge(a_registration(epoch=7, refused_epoch=9, refused="too many slots"))
    world.loop.acknowledge(a_registration("e1", epoch=8, refused_epoch=3, refused="long ago"))
    versions = world.disk.versions("acknowledgement", "chat/e0/w0")
    assert [one.reason for one in versions] == ["epoch 7 is applied", "too many slots"]
    assert written(world, "acknowledgement")[-1] == "epoch 8 is applied"


@in_virtual_time
async def test_old_records_are_forgotten() -> None:
    world = World()
    world.config = replace(world.config, retention_days=1.0)
    world.start()
    await world.tick()
    await world.tick(86_400.0)
    assert len(written(world)) == 2
    await world.tick(1.0)
    assert len(written(world)) == 1


@in_virtual_time
async def test_pools_are_looked_after_each_in_its_way() -> None:
    world = World(confirmations=1)
    default = world.config.default
    world.config = Config(default, {"code": replace(default, mode="automatic")})
    world.start()
    world.engines.engines["code", "e0"] = MemoryEngine(HOME, BYTES)
    world.fleet.register(a_registration(pool="code"))
    world.fleet.push(WorkerId("code", "e0", "w0", 1), 1, [a_delta(SKEWED)])
    world.count(SKEWED)
    await world.tick()
    outcomes = {pool: view.decision.outcome for (pool, _), view in world.loop.views.items()}
    assert outcomes == {POOL: "propose", "code": "act"}
    assert alike(world.homes["e0"].placement, HOME)
    assert not alike(world.engines.engines["code", "e0"].placement, HOME)


def test_answers_have_names() -> None:
    answers = Plan(GOAL), Hold("no"), Infeasible("never")
    assert [outcome(one) for one in answers] == ["plan", "hold", "infeasible"]


@in_virtual_time
async def test_an_engine_that_stands_elsewhere_than_its_pool_joins_it() -> None:
    """It was started again, and begins where all begin."""
    world = World(mode="automatic", confirmations=1, cooldown_s=0.0)
    world.count(SKEWED)
    await world.tick()
    world.homes["e1"].placement = HOME
    await world.tick(TICK_S)
    reason = "plan-2: e1 stands elsewhere than the rest of the pool: to join it"
    assert decided(world) == ("act", reason)
    assert is_even(world)
    assert world.states() == {"plan-1": "superseded", "plan-2": "applied"}


@in_virtual_time
async def test_placements_go_with_the_last_that_speaks_of_them() -> None:
    """A month and a day later; those of the plan that is applied stay."""
    world = World(mode="automatic", confirmations=1)
    world.count(SKEWED)
    await world.tick()
    old = world.loop.ledger.keep_placement(OTHER)
    kept = {record.id for record in world.loop.ledger.records.newest("placement")}
    assert old in kept
    await world.tick(31 * 86_400.0)
    now = {record.id for record in world.loop.ledger.records.newest("placement")}
    assert old not in now
    assert now == world.loop.arbiter.placements_in_use() - {""}


@in_virtual_time
async def test_what_workers_said_long_ago_is_forgotten_though_they_go_on() -> None:
    """A plan a day for 195 days: the newest of 2 workers stays, and what is of the last 30 days."""
    world = World()
    for day in range(195):
        for engine in world.homes:
            world.loop.acknowledge(a_registration(engine, epoch=day + 1))
        await world.tick(86_400.0)
    for engine in world.homes:
        kept = world.disk.versions("acknowledgement", f"{POOL}/{engine}/w0")
        assert [record.version for record in kept] == list(range(166, 196))
    assert world.loop.conditions == {}


@in_virtual_time
async def test_names_with_strokes_are_nobody_elses() -> None:
    world = World()
    for engine, worker in (("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c")):
        world.loop.acknowledge(a_registration(engine, worker, epoch=1))
    found = [record.id for record in reversed(world.disk.newest("acknowledgement"))]
    assert found == ["chat/a%2Fb/c", "chat/a/b%2Fc", "chat/a%252Fb/c"]


@in_virtual_time
async def test_a_pool_that_is_gone_for_a_month_leaves_no_snapshot() -> None:
    world = World()
    world.fleet.register(a_registration(pool="code"))
    await world.tick()
    assert len(world.disk.newest("snapshot")) == 2
    await world.tick(31 * 86_400.0)
    assert [record.id for record in world.disk.newest("snapshot")] == [POOL]
