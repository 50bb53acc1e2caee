"""Another width through the API: GPUs first, engines then, and pods that nobody needs at the end.

Two engines of 2 ranks, each rank in a pod of its own with 1 GPU.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import grpc
import pytest

from placer.v1 import fleet_pb2, placement_pb2
from placer.v1.fleet_pb2 import ReadyPod
from tests.controller.server.tiny_server import ENGINES, Setting, World, a_world, refusal
from tests.controller.tiny_pool import asynchronous

NOT_NOW, INVALID = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
WAITING, REFUSED = fleet_pb2.OPERATION_PHASE_WAITING, fleet_pb2.OPERATION_PHASE_REFUSED
SUCCEEDED = fleet_pb2.OPERATION_PHASE_SUCCEEDED


def uid(engine: str, rank: int) -> str:
    return f"{engine}/{rank}"


def uids(ranks: int) -> list[str]:
    return [uid(engine, rank) for engine in ENGINES for rank in range(ranks)]


def ready(pods: Collection[str]) -> list[Any]:
    return [ReadyPod(uid=one) for one in pods]


async def hear(world: World, pool: str = "tiny") -> None:
    """Every rank of every engine, as wide as it is now."""
    for (of, engine), it in world.engines.engines.items():
        if of == pool:
            await hear_ranks(world, pool, engine, it.placement.gpus, it.placement.slots)


async def hear_ranks(world: World, pool: str, engine: str, ranks: int, slots: int) -> None:
    for rank in range(ranks):
        sizes = {"ep_rank": rank, "ep_size": ranks, "slots": slots, "can_resize": True}
        told = {"pod_uid": uid(engine, rank), "pod_name": uid(engine, rank), "pool": pool}
        await world.register(engine=engine, worker=f"w{rank}", changes=sizes, **told)


async def report(world: World, pods: Collection[str], allocated: int | None = None) -> Any:
    gpus = len(pods) if allocated is None else allocated
    request = fleet_pb2.ReportCapacityRequest(pool="tiny", allocated=gpus, ready_pods=ready(pods))
    return await world.fleet.ReportCapacity(request)


async def scale(world: World, ranks: int, **more: Any) -> Any:
    request = fleet_pb2.ScaleToRequest(pool="tiny", ranks=ranks, **more)
    return (await world.fleet.ScaleTo(request)).operation


async def seen(world: World) -> Any:
    return (await world.fleet.Status(fleet_pb2.StatusRequest(pool="tiny"))).pools[0]


async def the_operation(world: World, id: str) -> Any:
    request = fleet_pb2.OperationsRequest(operation_id=id)
    (found,) = (await world.fleet.Operations(request)).operations
    return found


def numbers(stock: Any) -> tuple[int, ...]:
    return (stock.desired, stock.allocated, stock.available, stock.active, stock.traffic)


async def turn(world: World) -> None:
    """Who waits begins if it can, and what begins ends."""
    await world.loop.turns.look()
    await world.loop.arbiter.settle()


def widths(world: World) -> list[int]:
    return [engine.placement.gpus for engine in world.engines.engines.values()]


@asynchronous
async def test_up_gpus_come_first_and_then_the_engines() -> None:
    async with a_world() as world:
        await hear(world)
        assert numbers((await report(world, uids(2))).stock) == (4, 4, 4, 4, 4)
        operation = await scale(world, 4, wait=True, idempotency_key="mine")
        assert (operation.phase, operation.queue) == (WAITING, 1)
        await turn(world)
        pool = await seen(world)
        assert numbers(pool.stock) == (8, 4, 4, 4, 4)
        assert pool.waiting.progress == "waiting for pods: 8 GPUs are asked for, 4 available"
        assert not pool.HasField("operation")
        await report(world, uids(3), allocated=8)
        await turn(world)
        assert numbers((await seen(world)).stock) == (8, 8, 6, 4, 4)
        assert widths(world) == [2, 2]
        answer = await report(world, uids(4))
        assert list(answer.releasable_pods) == []  # they are about to join
        await turn(world)
        assert widths(world) == [4, 4]
        await hear(world)
        pool = await seen(world)
        assert numbers(pool.stock) == (8, 8, 8, 8, 8)
        assert (list(pool.releasable_pods), pool.HasField("waiting")) == ([], False)
        assert (await the_operation(world, operation.id)).phase == SUCCEEDED
        again = await scale(world, 4, wait=True, idempotency_key="mine")
        assert (again.id, again.phase) == (operation.id, SUCCEEDED)


@asynchronous
async def test_two_who_ask_for_the_same_while_it_waits_are_both_known_afterwards() -> None:
    async with a_world() as world:
        await hear(world)
        await report(world, uids(2))
        one, other = [
            await scale(world, 4, wait=True, idempotency_key=key) for key in ("one", "other")
        ]
        assert (other.id, other.idempotency_key, other.queue) == (one.id, "other", 1)
        await report(world, uids(4))
        await turn(world)
        await hear(world)
        await scale(world, 2)
        await world.loop.arbiter.settle()
        await hear(world)
        for key in ("one", "other"):
            again = await scale(world, 4, wait=True, idempotency_key=key)
            assert (again.id, again.phase) == (one.id, SUCCEEDED)
        await turn(world)
        assert widths(world) == [2, 2]


@asynchronous
async def test_down_the_engines_first_and_pods_that_are_left_may_go() -> None:
    async with a_world() as world:
        await hear(world)
        await scale(world, 4, ready_pods=ready(uids(4)))
        await world.loop.arbiter.settle()
        await hear(world)
        operation = await scale(world, 2, wait=True)
        assert list((await seen(world)).releasable_pods) == []
        await turn(world)
        assert widths(world) == [2, 2]
        await hear(world)
        gone = [uid(engine, rank) for engine in ENGINES for rank in (2, 3)]
        assert list((await seen(world)).releasable_pods) == []  # ranks 2 and 3 are heard still
        for engine in ENGINES:
            for rank in (2, 3):
                world.loop.fleet.pool("tiny").lose((engine, f"w{rank}"))
        await turn(world)  # what was asked for is not any more
        pool = await seen(world)
        assert numbers(pool.stock) == (4, 8, 8, 4, 4)
        assert sorted(pool.releasable_pods) == gone
        assert sorted((await the_operation(world, operation.id)).released_pods) == gone
        answer = await report(world, uids(2))
        assert numbers(answer.stock) == (4, 4, 4, 4, 4)
        assert list(answer.releasable_pods) == []


@asynchronous
async def test_no_pod_may_go_while_a_rank_is_missing_or_does_not_say_where_it_runs() -> None:
    async with a_world() as world:
        await hear(world)
        spare = [*uids(2), "spare"]
        assert list((await report(world, spare)).releasable_pods) == ["spare"]
        world.loop.fleet.pool("tiny").lose(("engine-1", "w1"))
        assert list((await report(world, spare)).releasable_pods) == []
        changes = {"ep_rank": 1, "can_resize": True}
        await world.register(engine="engine-1", worker="w1", changes=changes)
        assert list((await report(world, spare)).releasable_pods) == []
        await hear(world)
        assert list((await report(world, spare)).releasable_pods) == ["spare"]


@asynchronous
async def test_without_leave_to_wait_it_is_refused_while_pods_are_missing() -> None:
    async with a_world() as world:
        await hear(world)
        await report(world, uids(2))
        told = await refusal(scale(world, 4))
        assert told == (
            NOT_NOW,
            "8 GPUs are asked for, 4 available: report pods that are ready, or say that it may "
            "wait",
        )
        assert numbers((await seen(world)).stock) == (4, 4, 4, 4, 4)
        assert (await scale(world, 4, ready_pods=ready(uids(4)))).queue == 0
        await world.loop.arbiter.settle()
        assert widths(world) == [4, 4]


@asynchronous
async def test_a_pool_of_which_nobody_reports_is_widened_as_ever() -> None:
    async with a_world() as world:
        await hear(world)
        assert numbers((await seen(world)).stock) == (4, 4, 4, 4, 4)
        await scale(world, 4)
        await world.loop.arbiter.settle()
        assert widths(world) == [4, 4]


@asynchronous
async def test_what_waits_is_told_in_its_order_over_all_and_survives_its_controller(
    tmp_path: Path,
) -> None:
    setting = Setting(ledger=tmp_path / "ledger.db")
    async with a_world(setting) as world:
        await hear(world)
        await report(world, uids(2))
        plan = await world.proposed()
        first = await scale(world, 4, wait=True, idempotency_key="mine")
        approved = placement_pb2.ApproveRequest(plan_id=plan.id)
        assert (await world.placement.Approve(approved)).plan.queue == 2
        assert first.queue == 1
    async with a_world(setting) as world:
        await hear(world)
        assert (await seen(world)).waiting.id == first.id
        assert (await scale(world, 4, wait=True, idempotency_key="mine")).id == first.id
        await turn(world)  # the first cannot yet, and keeps nobody from beginning
        found = (await world.placement.Get(placement_pb2.GetRequest(plan_id=plan.id))).plan
        assert (found.state, found.queue) == (placement_pb2.PLAN_STATE_APPLIED, 0)
        await report(world, uids(4))
        await turn(world)
        assert widths(world) == [4, 4]
        assert len(world.loop.ledger.records.newest("operation")) == 2


@asynchronous
async def test_between_two_looks_a_plan_begins_and_a_width_after_it() -> None:
    """One after another, as they came, and as soon as what was at work has ended."""
    async with a_world() as world:
        await hear(world)
        plan = await world.proposed()
        await world.placement.Approve(placement_pb2.ApproveRequest(plan_id=plan.id))
        await scale(world, 4, wait=True)
        await world.loop.turns.look()
        running = world.loop.arbiter.running
        assert running is not None
        assert running.value.plan_id == plan.id
        await world.loop.arbiter.settle()
        await world.loop.turns.look()
        await world.loop.arbiter.settle()
        assert widths(world) == [4, 4]


@asynchronous
async def test_who_waits_is_replaced_taken_back_or_not_wanted_any_more() -> None:
    async with a_world() as world:
        await hear(world)
        await report(world, uids(2))
        first = await scale(world, 4, wait=True)
        assert (await scale(world, 4, wait=True)).id == first.id  # it is the same change
        second = await scale(world, 3, wait=True)
        ended = await the_operation(world, first.id)
        assert (ended.phase, ended.reason) == (REFUSED, "op-2 takes its place")
        back = placement_pb2.RollbackRequest(pool="tiny", reason="too dear", idempotency_key="k")
        for _ in range(2):
            ended = (await world.placement.Rollback(back)).operation
            assert (ended.id, ended.phase, ended.reason) == (second.id, REFUSED, "too dear")
        third = await scale(world, 4, wait=True)
        ended = await scale(world, 2, wait=True)
        assert (ended.id, ended.phase) == (third.id, REFUSED)
        assert ended.reason == "2 ranks are wanted again"
        await turn(world)
        assert numbers((await seen(world)).stock) == (4, 4, 4, 4, 4)
        assert widths(world) == [2, 2]


@asynchronous
async def test_what_can_never_be_does_not_wait() -> None:
    async with a_world() as world:
        await world.register()
        operation = await scale(world, 4, wait=True)
        assert operation.phase == REFUSED
        assert operation.reason.startswith(
            "tiny stays at 2 ranks: engine-1 cannot change its width"
        )


@asynchronous
async def test_capacity_is_written_down_when_it_changes_alone(tmp_path: Path) -> None:
    setting = Setting(ledger=tmp_path / "ledger.db")
    async with a_world(setting) as world:
        for _ in range(3):
            await report(world, uids(3), allocated=8)
        assert world.loop.ledger.records.version("capacity", "tiny") == 1
    async with a_world(setting) as world:
        await hear(world)
        assert numbers((await seen(world)).stock) == (4, 8, 6, 4, 4)


@pytest.mark.parametrize(
    ("pods", "why"),
    [
        ([ReadyPod(uid="a"), ReadyPod(uid="a")], "'a' with 0 GPUs: each uid once"),
        ([ReadyPod(uid="")], "'' with 0 GPUs"),
        ([ReadyPod(uid="a", gpus=10**6)], "'a' with 1000000 GPUs"),
    ],
)
@asynchronous
async def test_pods_that_cannot_be_are_refused(pods: list[Any], why: str) -> None:
    async with a_world() as world:
        request = fleet_pb2.ReportCapacityRequest(pool="tiny", ready_pods=pods)
        code, told = await refusal(world.fleet.ReportCapacity(request))
        assert code is INVALID
        assert told.startswith(f"ready_pods: {why}")
