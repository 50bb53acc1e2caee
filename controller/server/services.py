"""The four services of protos/placer/v1, thin over the loop and its desk."""

import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

from controller.adapters.vllm_engines import VllmEngines
from controller.fleet import Member, Pool
from controller.loop import Loop, outcome
from controller.plans import PlanState
from controller.server import explain, wire
from controller.server.answers import answering, streaming
from controller.server.callers import CALLER, Role
from controller.store import Record
from placer.errors import RoutingError
from placer.files.plans import parse_plan, plan_text
from placer.optimizers import optimizer as known_optimizer
from placer.plan import Hold, Plan
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, LedgerServiceServicer
from placer.v1.placement_pb2_grpc import PlacementServiceServicer
from placer.v1.profile_pb2_grpc import ProfileServiceServicer

MOST = 1000  # records in an answer

# gRPC names methods as protos do.
# ruff: noqa: N802


class Profiles(ProfileServiceServicer):  # type: ignore[misc]
    def __init__(self, loop: Loop) -> None:
        self.fleet, self.clock, self.config = loop.fleet, loop.journal.clock, loop.config

    @streaming
    async def Push(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            refused, id = "", wire.worker_id(request.id)
            CALLER.get().check(id.pool, id.engine, id.worker)
            self.fleet.member(id)
            try:
                deltas = wire.deltas(request)
                sequence = wire.number("sequence", request.sequence)
                paces = wire.paces(request)
                self.fleet.push(id, sequence, deltas, self.clock.now_s(), paces)
            except RoutingError as error:
                refused = str(error)
            yield profile_pb2.PushResponse(
                sequence=request.sequence,
                refused=refused,
                send_affinity=self._wants_affinity(id.pool, id.engine, id.worker),
            )

    def _wants_affinity(self, pool: str, engine: str, worker: str) -> bool:
        """From one worker of a pool, where tokens travel by its placement: it is large."""
        if self.config.of(pool).dispatch == "allgather":
            return False
        recording = (
            key for key, member in self.fleet.pool(pool).members.items()
            if member.said.worker.records
        )  # fmt: skip
        return (engine, worker) == min(recording, default=None)


class Placements(PlacementServiceServicer):  # type: ignore[misc]
    def __init__(self, loop: Loop, offers: VllmEngines) -> None:
        self.loop, self.desk, self.offers = loop, loop.desk, offers

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
            answer: Any = parse_plan(request.file.decode(errors="replace"), "the proposed plan")
        else:
            answer, before = await self._answer(request.pool, "")
        if not isinstance(answer, Plan):
            return placement_pb2.ProposeResponse(outcome=outcome(answer), reason=answer.reason)
        reason = request.reason or answer.reason or "an operator's plan"
        record = self.desk.propose(request.pool, answer, before, reason)
        return placement_pb2.ProposeResponse(
            outcome="plan", reason=answer.reason, plan=wire.plan(record)
        )

    @answering
    async def Approve(self, request: Any) -> Any:
        reason = request.reason or "approved by an operator"
        record = self.desk.plans.approve(request.plan_id, request.version, reason)
        return placement_pb2.ApproveResponse(plan=wire.plan(record))

    @answering
    async def Apply(self, request: Any) -> Any:
        if (known := self.desk.known(request.idempotency_key)) is not None:
            return placement_pb2.ApplyResponse(operation=wire.operation(known))
        self.desk.refuse_if_busy()  # before the plan is approved, and begins some time else
        reason = request.reason or "applied by an operator"
        plan = self.desk.plans.approve(request.plan_id, request.version, reason)
        found = await self.desk.begin(plan, request.idempotency_key, reason)
        return placement_pb2.ApplyResponse(operation=wire.operation(found))

    @answering
    async def Rollback(self, request: Any) -> Any:
        found = self.desk.known(request.idempotency_key)
        if found is None:
            reason = request.reason or "an operator wants it back"
            found = await self.desk.rollback(request.pool, request.idempotency_key, reason)
        return placement_pb2.RollbackResponse(operation=wire.operation(found))

    @answering
    async def Get(self, request: Any) -> Any:
        plans = self.desk.plans
        found = wire.plan(plans.get(request.plan_id), plans.file(request.plan_id))
        return placement_pb2.GetResponse(plan=found)

    @answering
    async def List(self, request: Any) -> Any:
        ledger = self.loop.journal.ledger
        found = ledger.newest("plan", limit=request.limit or 20, pool=request.pool or None)
        return placement_pb2.ListResponse(plans=[wire.plan(record) for record in found])

    @streaming
    async def Watch(self, request: Any) -> AsyncIterator[Any]:
        if request.engine or CALLER.get().role < Role.OPERATOR:
            CALLER.get().check(request.pool, request.engine)
            offers = self.offers.offers(request.pool, request.engine, request.after_epoch)
            async for epoch, file in offers:
                yield placement_pb2.WatchResponse(epoch=epoch, file=file)
            return
        async for record in self.loop.journal.watch():
            if record.kind in explain.KINDS and request.pool in ("", record.pool):
                yield placement_pb2.WatchResponse(record=wire.record(record))

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
        self.loop, self.fleet, self.journal = loop, loop.fleet, loop.journal
        self._begun_s = self.journal.clock.now_s()

    @answering
    async def Register(self, request: Any) -> Any:
        id = wire.worker_id(request.id)
        CALLER.get().check(id.pool, id.engine, id.worker)
        said = wire.registration(request)
        sequence = self.fleet.register(said, self.journal.clock.now_s())
        self.loop.heard(said)
        return fleet_pb2.RegisterResponse(sequence=sequence)

    @answering
    async def Status(self, request: Any) -> Any:
        names = [request.pool] if request.pool else sorted(self.fleet.pools)
        troubles = [f"{what}: {text}" for what, text in sorted(self.loop.told().items())]
        return fleet_pb2.StatusResponse(
            version=version("moe-placer"),
            uptime_s=self.journal.clock.now_s() - self._begun_s,
            pools=[await self._pool(self.fleet.pool(name)) for name in names],
            troubles=troubles,
        )

    @answering
    async def ScaleTo(self, request: Any) -> Any:
        known = self.loop.desk.known(request.idempotency_key)
        if known is None:
            reason = request.reason or f"an operator wants {request.ranks} ranks"
            known = self.loop.desk.scale(
                request.pool, request.ranks, request.idempotency_key, reason
            )
        return fleet_pb2.ScaleToResponse(operation=wire.operation(known))

    @answering
    async def Operations(self, request: Any) -> Any:
        ledger, pool = self.journal.ledger, request.pool or None
        if request.operation_id:
            found = [self.loop.desk.operation(request.operation_id)]
        else:
            found = ledger.newest("operation", limit=request.limit or 20, pool=pool)
        return fleet_pb2.OperationsResponse(operations=[wire.operation(one) for one in found])

    async def _pool(self, pool: Pool) -> Any:
        desk, view, policy = self.loop.desk, self.loop.views.get(pool.name), self.loop.config.of
        now_s = self.journal.clock.now_s()
        applied = desk.plans.in_state(pool.name, PlanState.APPLIED)
        proposed = desk.plans.in_state(pool.name, PlanState.PROPOSED, PlanState.APPROVED)
        running = desk.running
        message = fleet_pb2.Pool(
            name=pool.name, model=pool.model.name, mode=policy(pool.name).mode, ranks=pool.ranks,
            slots=pool.slots, window_s=policy(pool.name).window_s,
            tokens=pool.tokens(policy(pool.name).phase), **_pace(pool, policy(pool.name).phase),
            engines=[_engine(name, members, now_s) for name, members in pool.engines.items()],
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
    said = [member.said for member in members]
    return fleet_pb2.Engine(
        name=name,
        digest=said[0].digest,
        epoch=max(one.epoch for one in said),
        workers=len(members),
        silent_s=now_s - min(member.heard_s for member in members),
        tokens=sum(one.tokens for one in said),
        dropped=sum(max(member.said.dropped, member.lost) for member in members),
        troubles=[one.trouble for one in said if one.trouble],
    )


class Ledgers(LedgerServiceServicer):  # type: ignore[misc]
    def __init__(self, loop: Loop) -> None:
        self.ledger = loop.journal.ledger

    @answering
    async def History(self, request: Any) -> Any:
        """The steps of an operation are told as one, the last."""
        told: dict[tuple[str, str], Record] = {}
        before: int | None = None
        limit = min(request.limit or 50, MOST)
        while len(told) < limit:
            page = self.ledger.history(200, pool=request.pool or None, before=before)
            for record in page:
                if record.kind != "placement":
                    told.setdefault((record.kind, record.id), record)
            if len(page) < 200:
                break
            before = page[-1].number
        records = [wire.record(record) for record in list(told.values())[:limit]]
        return fleet_pb2.HistoryResponse(records=records)

    @answering
    async def Explain(self, request: Any) -> Any:
        records = explain.story(self.ledger, request.id)
        return fleet_pb2.ExplainResponse(
            lines=explain.sentences(records), records=[wire.record(one) for one in records]
        )
