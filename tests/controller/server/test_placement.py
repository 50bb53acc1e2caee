"""PlacementService: what-if, proposals, approval, applying, and the way back."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import pytest

from placer.files.plans import parse_plan
from placer.v1 import fleet_pb2, placement_pb2
from placer.v1.placement_pb2 import (
    ApplyRequest,
    ApproveRequest,
    GetRequest,
    ListRequest,
    PlanRequest,
    ProposeRequest,
    RollbackRequest,
)
from tests.controller.server.tiny_server import (
    IN_ORDER,
    POLICY,
    SWAPPED,
    Setting,
    World,
    a_file,
    a_world,
    refusal,
)
from tests.controller.tiny_pool import asynchronous

ABORTED = grpc.StatusCode.ABORTED
INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_NOW = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def applied(world: World, plan: Any, **more: Any) -> Any:
    """The operation, at its end."""
    request = ApplyRequest(plan_id=plan.id, **more)
    operation = (await world.placement.Apply(request)).operation
    await world.loop.arbiter.settle()
    return await the_operation(world, operation.id)


async def the_operation(world: World, id: str) -> Any:
    request = fleet_pb2.OperationsRequest(operation_id=id)
    (found,) = (await world.fleet.Operations(request)).operations
    return found


async def state(world: World, plan: Any) -> str:
    found = (await world.placement.Get(GetRequest(plan_id=plan.id))).plan
    return str(placement_pb2.PlanState.Name(found.state)).removeprefix("PLAN_STATE_")


@asynchronous
async def test_what_if_says_all_and_changes_nothing() -> None:
    async with a_world() as world:
        await world.traffic()
        before = world.loop.ledger.records.history()
        found = await world.placement.Plan(PlanRequest(pool="tiny"))
        assert found.outcome == "plan"
        assert found.reason == "the MoE layers of a step take 40.0% less time for 4 moved slots"
        plan = parse_plan(found.file.decode(), "the answer")
        assert plan.fit is not None
        assert (plan.fit.before.balancedness, plan.fit.after.balancedness) == (0.6, 1.0)
        assert world.loop.ledger.records.history() == before
        assert world.stands() == IN_ORDER


@asynchronous
async def test_what_if_with_too_little_traffic_or_limits_that_clash_is_an_answer() -> None:
    async with a_world() as world:
        await world.register()
        found = await world.placement.Plan(PlanRequest(pool="tiny"))
        assert (found.outcome, found.file) == ("hold", b"")
        assert found.reason.startswith("0 tokens of mixed traffic in 3600 s < 1,000 (least_tokens)")

    async with a_world(Setting(replace(POLICY, survive_node=True))) as world:
        await world.traffic()
        found = await world.placement.Plan(PlanRequest(pool="tiny"))
        assert (found.outcome, found.file) == ("infeasible", b"")
        assert "surviving a node clashes with having one" in found.reason


@asynchronous
async def test_what_if_of_an_unknown_optimizer_or_pool_is_refused() -> None:
    async with a_world() as world:
        await world.traffic()
        optimizer = PlanRequest(pool="tiny", optimizer="jiont")
        assert await refusal(world.placement.Plan(optimizer)) == (
            INVALID,
            "unknown optimizer 'jiont': did you mean 'joint'?",
        )
        pool = PlanRequest(pool="tini")
        assert await refusal(world.placement.Plan(pool)) == (
            NOT_FOUND,
            "no pool 'tini': there is tiny",
        )


@asynchronous
async def test_a_plan_made_now_is_proposed_approved_and_applied_to_both_engines() -> None:
    async with a_world() as world:
        await world.traffic()
        found = await world.placement.Propose(ProposeRequest(pool="tiny"))
        plan = found.plan
        assert (found.outcome, plan.id, plan.version, plan.moved) == ("plan", "plan-1", 1, 4)
        assert plan.gain == pytest.approx(0.4)
        request = ApproveRequest(plan_id="plan-1", version=1, reason="it is good")
        approved = (await world.placement.Approve(request)).plan
        assert (approved.version, approved.reason) == (2, "it is good")
        assert await state(world, plan) == "APPROVED"
        assert world.stands() == IN_ORDER  # until its turn, or Apply
        operation = await applied(world, plan, version=2)
        assert operation.phase == fleet_pb2.OPERATION_PHASE_SUCCEEDED
        assert await state(world, plan) == "APPLIED"
        assert world.stands("engine-1") == world.stands("engine-2") != IN_ORDER


@asynchronous
async def test_a_proposal_that_does_not_pay_is_an_answer_and_is_not_kept() -> None:
    async with a_world() as world:
        await world.traffic([[300, 300, 300, 300]] * 2)
        found = await world.placement.Propose(ProposeRequest(pool="tiny"))
        assert (found.outcome, found.HasField("plan")) == ("hold", False)
        assert "no expert would move" in found.reason
        assert not (await world.placement.List(ListRequest())).plans


DUPLICATE, LOST = [[0, 0, 1, 2, 1, 3], [0, 1, 1, 2, 2, 3]], [[0, 1, 2, 2], [0, 1, 2, 3]]
BAD = {
    "no plan": (b"\xff{}", "the proposed plan is not JSON"),
    "changed by hand": (
        a_file().replace(b"[0, 2, 1, 3]", b"[2, 0, 1, 3]"),
        "the map was changed; drop the digest if that was you",
    ),
    "of another model": (a_file([[0, 1, 2, 3]]), "the plan is for 1 layers x 4 experts and the"),
    "of another width": (
        a_file([[0, 1, 2, 3]] * 2, gpus=4),
        "the plan is for 4 ranks and the engine has 2: plan with --gpus 2",
    ),
    "of other slots": (
        a_file([[0, 1, 2, 3, 0, 1]] * 2),
        "the plan has 6 slots a layer and the engine 4: plan with --redundant 0",
    ),
    "of other nodes": (
        a_file([[0, 1, 2, 3]] * 2, nodes=2),
        "the placement is for 2 GPUs in 2 nodes but by hand has 2 in 1",
    ),
    "with a hole": (a_file([[0, 1, 2, -1], [0, 1, 2, 3]]), "leaves 1 slots empty"),
    "without an expert": (a_file(LOST), "layer 0: no slot holds expert 3: tokens would be lost"),
    "without layers": (a_file().replace(b'"physical_to', b'"physical_too'), "physical_to_logical"),
}


@pytest.mark.parametrize(("file", "why"), BAD.values(), ids=BAD)
@asynchronous
async def test_a_file_that_may_not_be_applied_is_refused_and_not_kept(
    file: bytes, why: str
) -> None:
    async with a_world() as world:
        await world.traffic()
        code, told = await refusal(world.placement.Propose(ProposeRequest(pool="tiny", file=file)))
        assert (code, why in told) == (INVALID, True), told
        assert not (await world.placement.List(ListRequest())).plans


@asynchronous
async def test_a_file_for_a_pool_that_cannot_apply_or_is_not_there_is_refused() -> None:
    async with a_world() as world:
        nobody = world.placement.Propose(ProposeRequest(pool="tiny", file=a_file()))
        assert await refusal(nobody) == (
            NOT_FOUND,
            "no pool 'tiny': there is none yet: does PLACER_AGENT name this address?",
        )
        await world.register(changes={"can_apply": False})
        off = world.placement.Propose(ProposeRequest(pool="tiny", file=a_file()))
        assert await refusal(off) == (
            INVALID,
            "the engine's expert load balancer is off: start it with --enable-eplb",
        )


@asynchronous
async def test_plans_are_listed_newest_first_and_got_with_their_file() -> None:
    async with a_world() as world:
        await world.traffic()
        first, second = await world.proposed(), await world.proposed(IN_ORDER)
        plans = (await world.placement.List(ListRequest(pool="tiny"))).plans
        found = [(plan.id, placement_pb2.PlanState.Name(plan.state)) for plan in plans]
        assert found == [
            ("plan-1", "PLAN_STATE_SUPERSEDED"), ("plan-2", "PLAN_STATE_PROPOSED"),
        ]  # fmt: skip
        assert not any(plan.file for plan in plans)
        assert len((await world.placement.List(ListRequest(limit=1))).plans) == 1
        assert not (await world.placement.List(ListRequest(pool="other"))).plans
        one = (await world.placement.Get(GetRequest(plan_id=first.id))).plan
        assert one.reason == f"{second.id} takes its place"
        assert parse_plan(one.file.decode(), "it").placement.digest == first.digest


@pytest.mark.parametrize("method", ["Get", "Approve", "Apply"])
@asynchronous
async def test_a_plan_that_is_not_there_is_not_found(method: str) -> None:
    async with a_world() as world:
        request = getattr(placement_pb2, f"{method}Request")(plan_id="plan-7")
        assert await refusal(getattr(world.placement, method)(request)) == (
            NOT_FOUND,
            "no plan 'plan-7': `placer history` lists them",
        )


@asynchronous
async def test_whoever_saw_an_older_version_is_turned_away() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        await world.placement.Approve(ApproveRequest(plan_id=plan.id, version=1))
        for request in (
            world.placement.Approve(ApproveRequest(plan_id=plan.id, version=1)),
            world.placement.Apply(ApplyRequest(plan_id=plan.id, version=1)),
        ):
            assert await refusal(request) == (
                ABORTED,
                "plan-1 is at version 2 and not 1: somebody was first, read it again",
            )
        assert world.stands() == IN_ORDER
        await world.proposed(IN_ORDER)
        late = world.placement.Approve(ApproveRequest(plan_id=plan.id))
        assert await refusal(late) == (
            NOT_NOW,
            "plan-1 is superseded: only a proposed plan can be approved",
        )


@asynchronous
async def test_of_two_who_apply_at_once_one_wins_and_the_other_is_told_which_operation() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        world.engines.gate.clear()
        request = ApplyRequest(plan_id=plan.id)
        calls = [world.placement.Apply(request), world.placement.Apply(request)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        (won,) = [one for one in answers if not isinstance(one, BaseException)]
        (lost,) = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
        assert won.operation.id == "op-1"
        assert lost.code() is NOT_NOW
        assert "op-1 is at work on tiny" in str(lost.details())
        third = await refusal(world.placement.Apply(ApplyRequest(plan_id=plan.id, version=1)))
        assert third == (
            NOT_NOW,
            "op-1 is at work on tiny (engine-1: staging): wait for it, or placer rollback tiny",
        )
        world.engines.gate.set()
        await world.loop.arbiter.settle()
        assert world.stands() == SWAPPED
        assert len((await world.fleet.Operations(fleet_pb2.OperationsRequest())).operations) == 1


@asynchronous
async def test_a_plan_that_came_while_another_was_applied_is_not_approved_by_being_refused() -> (
    None
):
    async with a_world() as world:
        await world.traffic()
        world.engines.gate.clear()
        first = await world.proposed()
        await world.placement.Apply(ApplyRequest(plan_id=first.id))
        second = await world.proposed(IN_ORDER)
        code, _ = await refusal(world.placement.Apply(ApplyRequest(plan_id=second.id)))
        assert code is NOT_NOW
        assert await state(world, second) == "PROPOSED"


@asynchronous
async def test_the_same_key_is_the_same_operation() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        first = await applied(world, plan, idempotency_key="mine")
        again = await applied(world, plan, idempotency_key="mine")
        assert first == again
        assert again.idempotency_key == "mine"
        request = RollbackRequest(pool="tiny", idempotency_key="back")
        ids = []
        for _ in range(2):
            ids.append((await world.placement.Rollback(request)).operation.id)
            await world.loop.arbiter.settle()
        assert ids == ["op-2", "op-2"]
        assert world.stands() == IN_ORDER


@asynchronous
async def test_a_plan_that_starts_from_another_map_is_refused_and_superseded() -> None:
    async with a_world() as world:
        await world.traffic()
        made = (await world.placement.Propose(ProposeRequest(pool="tiny"))).plan
        for name in ("engine-1", "engine-2"):
            world.engines.engines["tiny", name].placement = parse_plan(
                a_file().decode(), "another"
            ).placement
        told = await refusal(world.placement.Apply(ApplyRequest(plan_id=made.id)))
        assert told == (
            NOT_NOW,
            "plan-1 starts from another map than the pool's now: propose again",
        )
        assert await state(world, made) == "SUPERSEDED"
        assert world.stands() == SWAPPED


@asynchronous
async def test_rollback_goes_to_where_the_pool_stood_before_and_there_and_back_again() -> None:
    async with a_world() as world:
        await world.traffic()
        never = await refusal(world.placement.Rollback(RollbackRequest(pool="tiny")))
        assert never == (
            NOT_NOW,
            "tiny was never changed: there is nothing to roll back to",
        )
        plan = await world.proposed()
        await applied(world, plan)
        request = RollbackRequest(pool="tiny", reason="slower")
        operation = (await world.placement.Rollback(request)).operation
        await world.loop.arbiter.settle()
        operation = await the_operation(world, operation.id)
        assert (operation.kind, operation.plan_id) == ("rollback", "plan-1")
        assert operation.phase == fleet_pb2.OPERATION_PHASE_SUCCEEDED
        assert world.stands() == world.stands("engine-2") == IN_ORDER
        assert await state(world, plan) == "ROLLED_BACK"


@asynchronous
async def test_rollback_of_what_runs_takes_it_back_and_its_key_takes_nothing_more_back() -> None:
    async with a_world() as world:
        await world.traffic()
        await applied(world, await world.proposed())
        world.engines.gate.clear()
        plan = await world.proposed(IN_ORDER)
        running = (await world.placement.Apply(ApplyRequest(plan_id=plan.id))).operation
        request = RollbackRequest(pool="tiny", reason="a mistake", idempotency_key="back")
        assert (await world.placement.Rollback(request)).operation.id == running.id
        world.engines.gate.set()
        await world.loop.arbiter.settle()
        ended = await the_operation(world, running.id)
        assert ended.phase == fleet_pb2.OPERATION_PHASE_ROLLED_BACK
        assert ended.reason == "a mistake"
        assert await state(world, plan) == "ROLLED_BACK"
        assert world.stands() == SWAPPED
        again = await world.placement.Rollback(request)  # its answer was lost
        await world.loop.arbiter.settle()
        assert again.operation.id == running.id
        assert world.stands() == SWAPPED


@asynchronous
async def test_an_engine_that_is_gone_is_named() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        for name in ("engine-1", "engine-2"):
            world.engines.engines["tiny", name].is_gone = True
        told = await refusal(world.placement.Apply(ApplyRequest(plan_id=plan.id)))
        assert told == (
            grpc.StatusCode.UNAVAILABLE,
            "engine-1 of tiny is gone: start it again",
        )
