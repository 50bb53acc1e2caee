"""The four services of protos/placer/v1, thin over the loop and its arbiter."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from controller.changes.plans import PlanState
from controller.engines.vllm_engines import VllmEngines
from controller.fleet.workers import Member, Pool, WorkerId
from controller.ledger.ledger import Ledger, Record
from controller.loop import Loop, outcome
from controller.server import explain, wire
from controller.server.answers import answering, streaming
from controller.server.callers import CALLER, Role
from controller.server.intake import LIGHT
from placer.errors import PlacementError, RoutingError
from placer.files.plans import parse_plan, plan_text
from placer.optimizers import optimizer as known_optimizer
from placer.plan import Hold, Plan
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, LedgerServiceServicer
from placer.v1.placement_pb2_grpc import PlacementServiceServicer
from placer.v1.profile_pb2_grpc import ProfileServiceServicer

MOST = 1000  # records in an answer
VALUES, SLOT_VALUES = 10_000, 12  # of a plan file: an expert and a move have 7, its reason a few
VALUE = 40  # bytes of each, in the mean; without a reason it is five
CONDITIONS = 4  # of an engine's workers that are told

# gRPC names methods as protos do.
# ruff: noqa: N802


class Profiles(ProfileServiceServicer):  # type: ignore[misc]
    def __init__(self, loop: Loop) -> None:
        self.fleet, self.clock, self.config = loop.fleet, loop.ledger.clock, loop.config
        self._beside = ThreadPoolExecutor(1, "push")

    @streaming
    async def Push(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for data in requests:
            push = await self._read(data)
            CALLER.get().check(push.id.pool, push.id.engine, push.id.worker)
            self.fleet.member(push.id)
            refused, wants_affinity = push.refused, self._wants_affinity(push.id)
            if not refused:
                deltas = push.deltas if wants_affinity else [one.lean for one in push.deltas]
                try:
                    self.fleet.push(push.id, push.sequence, deltas, self.clock.now_s(), push.paces)
                except RoutingError as error:
                    refused = str(error)
            yield profile_pb2.PushResponse(
                sequence=push.sequence, refused=refused, send_affinity=wants_affinity
            )

    async def _read(self, data: bytes) -> wire.Push:
        """Large ones on a thread, one after another: others are answered meanwhile."""
        if len(data) <= LIGHT:
            return wire.push(data)
        running = asyncio.get_running_loop()
        return await running.run_in_executor(self._beside, wire.push, data)

    def _wants_affinity(self, id: WorkerId) -> bool:
        """From one worker of a pool, where tokens travel by its placement: it is large. What others
        send of it is left out."""
        if not self.config.of(id.pool).asks_for_affinity:
            return False
        recording = (
            key for key, member in self.fleet.pool(id.pool).members.items()
            if member.registration.worker.records
        )  # fmt: skip
        return (id.engine, id.worker) == min(recording, default=None)


class Placements(PlacementServiceServicer):  # type: ignore[misc]
    def __init__(self, loop: Loop, offers: VllmEngines) -> None:
        self.loop, self.arbiter, self.offers = loop, loop.arbiter, offers
        self._beside = ThreadPoolExecutor(1, "plans")

    @answering
    async def Plan(self, request: Any) -> Any:
        begun = time.perf_counter()
        answer, _ = await self._answer(request.pool, request.optimizer)
        return placement_pb2.PlanResponse(
            outcome=outcome(answer),
            reason=answer.reason,
            file=plan_text(answer).encode() if isinstance(answer, Plan) else b"",
            solve_s=time.perf_counter() - begun,
        )

    @answering
    async def Propose(self, request: Any) -> Any:
        before = ""
        if request.file:
            answer: Any = await self._given(self.loop.fleet.pool(request.pool), request.file)
        else:
            answer, before = await self._answer(request.pool, "")
        if not isinstance(answer, Plan):
            return placement_pb2.ProposeResponse(outcome=outcome(answer), reason=answer.reason)
        reason = request.reason or answer.reason or "an operator's plan"
        record = self.arbiter.propose(request.pool, answer, before, reason)
        return placement_pb2.ProposeResponse(
            outcome="plan", reason=answer.reason, plan=wire.plan(record)
        )

    @answering
    async def Approve(self, request: Any) -> Any:
        reason = request.reason or "approved by an operator"
        record = self.arbiter.plans.approve(request.plan_id, request.version, reason)
        return placement_pb2.ApproveResponse(plan=wire.plan(record))

    @answering
    async def Apply(self, request: Any) -> Any:
        if (known := self.arbiter.known(request.idempotency_key)) is not None:
            return placement_pb2.ApplyResponse(operation=wire.operation(known))
        self.arbiter.refuse_if_busy()  # before the plan is approved, and begins some time else
        reason = request.reason or "applied by an operator"
        plan = self.arbiter.plans.approve(request.plan_id, request.version, reason)
        found = await self.arbiter.begin(plan, request.idempotency_key, reason)
        return placement_pb2.ApplyResponse(operation=wire.operation(found))

    @answering
    async def Rollback(self, request: Any) -> Any:
        found = self.arbiter.known(request.idempotency_key)
        if found is None:
            reason = request.reason or "an operator wants it back"
            found = await self.arbiter.rollback(request.pool, request.idempotency_key, reason)
        return placement_pb2.RollbackResponse(operation=wire.operation(found))

    @answering
    async def Get(self, request: Any) -> Any:
        plans = self.arbiter.plans
        found = wire.plan(plans.get(request.plan_id), plans.file(request.plan_id))
        return placement_pb2.GetResponse(plan=found)

    @answering
    async def List(self, request: Any) -> Any:
        records, limit = self.loop.ledger.records, min(request.limit or 20, MOST)
        found = records.newest("plan", limit=limit, pool=request.pool or None)
        return placement_pb2.ListResponse(plans=_listed(wire.plan, found))

    @streaming
    async def Watch(self, request: Any) -> AsyncIterator[Any]:
        if request.engine or CALLER.get().role < Role.OPERATOR:
            CALLER.get().check(request.pool, request.engine)
            offers = self.offers.offers(request.pool, request.engine, request.after_epoch)
            async for epoch, file in offers:
                yield placement_pb2.WatchResponse(epoch=epoch, file=file)
            return
        async for record in self.loop.ledger.watch():
            if record.kind in explain.KINDS and request.pool in ("", record.pool):
                yield placement_pb2.WatchResponse(record=wire.record(record))

    async def _given(self, pool: Pool, file: bytes) -> Any:
        """A plan file, read on a thread. Raises PlacementError for one that lists more than a plan
        for this pool can."""
        most = VALUES + SLOT_VALUES * pool.model.layers * pool.slots
        if len(file) > most * VALUE or file.count(b",") > most:
            raise PlacementError(
                f"the proposed plan has {len(file):,} bytes, and one for {pool.model.layers} layers"
                f" of {pool.slots} slots {most * VALUE:,} at most, of {most:,} values: is it for "
                "this pool?"
            )
        text, name = file.decode(errors="replace"), "the proposed plan"
        running = asyncio.get_running_loop()
        return await running.run_in_executor(self._beside, parse_plan, text, name)

    async def _answer(self, pool: str, optimizer: str) -> tuple[Any, str]:
        """What an optimizer says now, and the digest of the map that it starts from."""
        chosen = optimizer or self.loop.config.of(pool).optimizer
        known_optimizer(chosen)
        problem = await self.loop.problem(self.loop.fleet.pool(pool))
        if isinstance(problem, Hold):
            return problem, ""
        return await self.loop.planner.answer(problem, chosen), problem.start.digest


class FleetState(FleetServiceServicer):  # type: ignore[misc]
    def __init__(self, loop: Loop) -> None:
        self.loop, self.fleet, self.ledger = loop, loop.fleet, loop.ledger
        self._begun_s = self.ledger.clock.now_s()

    @answering
    async def Register(self, request: Any) -> Any:
        id = wire.worker_id(request.id)
        CALLER.get().check(id.pool, id.engine, id.worker)
        registration = wire.registration(request)
        sequence = self.fleet.register(registration, self.ledger.clock.now_s())
        self.loop.acknowledge(registration)
        return fleet_pb2.RegisterResponse(sequence=sequence)

    @answering
    async def Status(self, request: Any) -> Any:
        pools = [pool for _, pool in sorted(self.fleet.pools.items())]
        if request.pool:
            pools = [self.fleet.pool(request.pool)]
        conditions = [f"{what}: {text}" for what, text in sorted(self.loop.told().items())]
        told, room = [], wire.ANSWER
        for pool in pools:
            message = self._pool(pool, room, conditions)
            told.append(message)
            room -= message.ByteSize()
            if room <= 0:
                break
            await asyncio.sleep(0)  # others are answered between two of a thousand pools
        if len(told) < len(pools):
            shares = f"{len(told):,} of {len(pools):,}"
            conditions.append(
                f"status: only {shares} pools have room here: ask for one by its name"
            )
        return fleet_pb2.StatusResponse(
            version=version("moe-placer"),
            uptime_s=self.ledger.clock.now_s() - self._begun_s,
            pools=told,
            conditions=conditions,
        )

    @answering
    async def ScaleTo(self, request: Any) -> Any:
        known = self.loop.arbiter.known(request.idempotency_key)
        if known is None:
            reason = request.reason or f"an operator wants {request.ranks} ranks"
            known = self.loop.arbiter.scale(
                request.pool, request.ranks, request.idempotency_key, reason
            )
        return fleet_pb2.ScaleToResponse(operation=wire.operation(known))

    @answering
    async def Operations(self, request: Any) -> Any:
        records, pool = self.ledger.records, request.pool or None
        if request.operation_id:
            found = [self.loop.arbiter.operation(request.operation_id)]
        else:
            limit = min(request.limit or 20, MOST)
            found = records.newest("operation", limit=limit, pool=pool)
        return fleet_pb2.OperationsResponse(operations=_listed(wire.operation, found))

    def _pool(self, pool: Pool, room: int, conditions: list[str]) -> Any:
        """room: bytes that its engines may take; those that are left out are a condition"""
        arbiter, view, policy = (
            self.loop.arbiter,
            self.loop.views.get(pool.name),
            self.loop.config.of,
        )
        now_s = self.ledger.clock.now_s()
        applied = arbiter.plans.in_state(pool.name, PlanState.APPLIED)
        proposed = arbiter.plans.in_state(pool.name, PlanState.PROPOSED, PlanState.APPROVED)
        running = arbiter.running
        engines = pool.engines
        told = wire.fitting((_engine(name, them, now_s) for name, them in engines.items()), room)
        if len(told) < len(engines):
            shares = f"{len(told):,} of {len(engines):,}"
            conditions.append(f"status: only {shares} engines of {pool.name} have room here")
        message = fleet_pb2.Pool(
            name=pool.name, model=pool.model.name, mode=policy(pool.name).mode, ranks=pool.ranks,
            slots=pool.slots, window_s=policy(pool.name).window_s,
            tokens=pool.tokens(policy(pool.name).phase), **_pace(pool, policy(pool.name).phase),
            engines=told,
        )  # fmt: skip
        if view is not None:
            message.outcome, message.reason = view.decision.outcome, view.decision.reason
            message.decided_s = view.at_s
            message.balancedness = view.score.balancedness if view.score else 0.0
        if applied:
            message.applied_plan, message.applied_s = applied[0].id, applied[0].at_s
        if proposed:
            message.proposed_plan = proposed[0].id
        if running is not None and running.pool == pool.name:
            message.operation.CopyFrom(wire.operation(running))
        return message


def _pace(pool: Pool, phase: str) -> dict[str, float]:
    pace = pool.pace(phase)
    return {} if pace is None else {"step_s": pace.step_s or 0.0, "busy": pace.busy}


def _engine(name: str, members: list[Member], now_s: float) -> Any:
    registrations = [member.registration for member in members]
    conditions = list(dict.fromkeys(one.trouble for one in registrations if one.trouble))
    more = [f"and {len(conditions) - CONDITIONS} more"] if len(conditions) > CONDITIONS else []
    return fleet_pb2.Engine(
        name=name,
        digest=registrations[0].digest,
        epoch=max(one.epoch for one in registrations),
        workers=len(members),
        silent_s=now_s - min(member.last_seen_s for member in members),
        tokens=sum(one.tokens for one in registrations),
        dropped=sum(max(member.registration.dropped, member.lost) for member in members),
        conditions=[*conditions[:CONDITIONS], *more],
    )


class Ledgers(LedgerServiceServicer):  # type: ignore[misc]
    """What was. The ledger is read on one thread, one question after another: it may be large."""

    def __init__(self, loop: Loop) -> None:
        self.records = loop.ledger.records
        self._beside = ThreadPoolExecutor(1, "ledger")

    @answering
    async def History(self, request: Any) -> Any:
        limit, pool = min(request.limit or 50, MOST), request.pool or None
        return await self._read(_history, self.records, limit, pool)

    @answering
    async def Explain(self, request: Any) -> Any:
        return await self._read(_explain, self.records, request.id)

    async def _read(self, read: Callable[..., Any], *what: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._beside, read, *what)


def _history(records: Ledger, limit: int, pool: str | None) -> Any:
    """The steps of an operation are told as one, the last."""
    found = records.newest_of_each(limit, pool, but=["placement"])
    return fleet_pb2.HistoryResponse(records=_listed(wire.record, found))


def _explain(records: Ledger, id: str) -> Any:
    """Of a story that is too long for an answer the last part."""
    found = explain.story(records, id, MOST)
    records = reversed(_listed(wire.record, found[::-1]))
    return fleet_pb2.ExplainResponse(lines=explain.sentences(found), records=records)


def _listed(message: Callable[[Record], Any], records: Sequence[Record]) -> list[Any]:
    """As many as an answer holds."""
    return wire.fitting(map(message, records), wire.ANSWER)
