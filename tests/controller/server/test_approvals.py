"""Who approves or rejects what, written down."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.changes.plans import PlanState
from placer.channel import Settings, open_aio_channel
from placer.v1 import fleet_pb2, placement_pb2
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from tests.controller.server.tiny_server import (
    IN_ORDER,
    POLICY,
    Setting,
    World,
    a_world,
    refusal,
)
from tests.controller.server.tiny_service import AGENT, OPERATOR, TOKENS, write
from tests.controller.tiny_pool import asynchronous

NOT_NOW, ABORTED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED
REJECTED = placement_pb2.PLAN_STATE_REJECTED
PROPOSED = placement_pb2.PLAN_STATE_PROPOSED


async def approve(world: World, plan: Any, **more: Any) -> Any:
    request = placement_pb2.ApproveRequest(plan_id=plan.id, **more)
    return (await world.placement.Approve(request)).plan


async def reject(world: World, plan: Any, **more: Any) -> Any:
    request = placement_pb2.RejectRequest(plan_id=plan.id, **more)
    return (await world.placement.Reject(request)).plan


async def explained(world: World, plan: Any) -> list[str]:
    answer = await world.ledger.Explain(fleet_pb2.ExplainRequest(id=plan.id))
    return [line.partition("  ")[2] for line in answer.lines if "  " in line]


async def newest(world: World) -> Any:
    plans = (await world.placement.List(placement_pb2.ListRequest())).plans
    return max(plans, key=lambda plan: plan.epoch)


@asynchronous
async def test_who_approves_which_map_is_written_down() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        found = await approve(world, plan, approver="ada", digest=plan.digest, reason="looks good")
        assert (found.approver, found.version) == ("ada", 2)
        assert (await explained(world, plan))[1] == "plan-1 approved by ada: looks good"


@asynchronous
async def test_another_map_than_the_plans_is_not_approved() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        code, told = await refusal(approve(world, plan, digest=plan.before or "sha256:0"))
        assert code is NOT_NOW
        assert told.startswith(f"plan-1 leads to {plan.digest}, and what is approved is ")
        assert (await newest(world)).state == PROPOSED


@asynchronous
async def test_the_same_key_is_the_same_approval_whatever_became_of_the_plan() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        once = {"version": 1, "approver": "ada", "idempotency_key": "k1"}
        first = await approve(world, plan, **once)
        assert await approve(world, plan, **once) == first
        await world.loop.tick()
        await world.loop.arbiter.settle()
        again = await approve(world, plan, **once)
        assert again.state == placement_pb2.PLAN_STATE_APPLIED
        assert len(world.loop.ledger.records.newest("operation")) == 1
        other = {**once, "idempotency_key": "k2"}
        assert (await refusal(approve(world, plan, **other)))[0] is ABORTED


@asynchronous
async def test_a_rejected_plan_is_over_and_says_who_and_why() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        assert (await refusal(reject(world, plan, version=2)))[0] is ABORTED
        found = await reject(world, plan, approver="bob", reason="not on a Friday")
        assert (found.state, found.approver, found.version) == (REJECTED, "bob", 2)
        assert await reject(world, plan, approver="ada") == found
        assert (await explained(world, plan))[1] == "plan-1 rejected by bob: not on a Friday"
        code, told = await refusal(approve(world, plan))
        assert (code, told) == (
            NOT_NOW,
            "plan-1 is rejected: only a proposed plan can be approved",
        )
        await world.loop.tick()
        assert world.stands() == IN_ORDER


@asynchronous
async def test_an_approval_is_taken_back_as_long_as_nothing_runs() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        await approve(world, plan, approver="ada")
        assert (await reject(world, plan, approver="bob")).state == REJECTED
        await world.loop.tick()
        assert world.stands() == IN_ORDER
        applied = await world.proposed()
        await world.placement.Apply(placement_pb2.ApplyRequest(plan_id=applied.id, approver="ada"))
        await world.loop.arbiter.settle()
        assert (await newest(world)).approver == "ada"
        code, told = await refusal(reject(world, applied))
        assert code is NOT_NOW
        assert told.endswith("what runs is taken back by placer rollback tiny")


@pytest.mark.parametrize("mode", ["advisory", "automatic"])
@asynchronous
async def test_what_was_rejected_is_not_proposed_again(mode: str) -> None:
    policy = replace(POLICY, confirmations=1, hours=())
    async with a_world(Setting(policy)) as world:
        await world.traffic()
        await world.loop.tick()
        plan = await newest(world)
        assert plan.state == PROPOSED
        await reject(world, plan, approver="bob", reason="not now")
        world.loop.config.pools["tiny"] = replace(policy, mode=mode)  # type: ignore[index, arg-type]
        for _ in range(2):
            await world.loop.tick()
        assert [one.value.state for one in world.loop.ledger.records.newest("plan")] == [
            PlanState.REJECTED
        ]
        pool = (await world.fleet.Status(fleet_pb2.StatusRequest())).pools[0]
        assert pool.outcome == "hold"
        assert pool.reason.endswith("the same plan, plan-1, was rejected by bob: not now")


@asynchronous
async def test_a_plan_says_of_which_ledger_it_is_what_it_wins_and_why() -> None:
    async with a_world() as world:
        await world.traffic()
        await world.loop.tick()
        await world.loop.tick()
        plan = await newest(world)
        assert plan.ledger_id == world.loop.ledger.records.id
        status = await world.fleet.Status(fleet_pb2.StatusRequest())
        assert status.ledger_id == plan.ledger_id
        assert 1 - plan.score_after_s / plan.score_before_s == pytest.approx(plan.gain)
        assert plan.reasons[0] == plan.reason
        assert plan.reasons[1].startswith("layer 0, expert ")
        given = await world.proposed(IN_ORDER)
        assert given.epoch > plan.epoch
        assert not given.HasField("score_before_s")
        assert list(given.reasons) == [given.reason]


@asynchronous
async def test_approvals_are_for_operators(tmp_path: Path) -> None:
    tokens = write(tmp_path / "tokens.yaml", TOKENS)
    async with (
        a_world(Setting(tokens=tokens, token=OPERATOR)) as world,
        open_aio_channel(world.address, Settings(AGENT)) as channel,
    ):
        stub = PlacementServiceStub(channel)
        for call in (
            stub.Approve(placement_pb2.ApproveRequest(plan_id="plan-1")),
            stub.Reject(placement_pb2.RejectRequest(plan_id="plan-1")),
        ):
            assert (await refusal(call))[0] is grpc.StatusCode.PERMISSION_DENIED
