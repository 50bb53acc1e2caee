"""FleetService and LedgerService: what the fleet is, and what was."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

from controller.changes import rank_loads
from controller.changes.plans import Kept, PlanState
from controller.changes.sizing import sized
from controller.fleet.pools import Group, Member, Pool, Registration, width_of
from controller.fleet.workers import NAME, FleetError
from controller.ledger.ledger import Ledger, Record
from controller.loop import Loop
from controller.server import explain
from controller.server.answers import answering
from controller.server.callers import CALLER
from controller.server.intake import RequestError
from controller.server.messages import pods, sampled, wire
from controller.server.strangers import Spacing
from placer.v1 import fleet_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, LedgerServiceServicer

CONDITIONS = 4  # of an engine's workers that are told
READS = 0.2  # of the time may go into reading the ledger for whoever asks

# gRPC names methods as protos do.
# ruff: noqa: N802


class FleetState(FleetServiceServicer):
    def __init__(self, loop: Loop, refusals: Spacing) -> None:
        self.refusals = refusals
        self.loop, self.fleet, self.ledger = loop, loop.fleet, loop.ledger
        self._begun_s = self.ledger.clock.monotonic()

    @answering
    async def Register(self, request: Any) -> Any:
        id = wire.worker_id(request.id)
        CALLER.get().check(id.pool, id.engine, id.worker)
        registration = wire.registration(request)
        sequence = self.fleet.register(registration)
        self.loop.acknowledge(registration)
        answer = fleet_pb2.RegisterResponse(sequence=sequence)
        if (wanted := self.loop.config.of(id.pool).traces).requests:
            workers = self.fleet.recording(id.pool)
            answer.sampling.CopyFrom(sampled.sampling(wanted, workers))
        return answer

    @answering
    async def Status(self, request: Any) -> Any:
        return await self.status(request.pool)

    async def status(self, name: str = "") -> Any:
        """Of one pool, or of all that have room in an answer."""
        pools = [pool for _, pool in sorted(self.fleet.pools.items())]
        if name:
            pools = [self.fleet.pool(name)]
        conditions = [f"{what}: {text}" for what, text in sorted(self.loop.told().items())]
        told, room = [], wire.ANSWER
        for pool in pools:
            message = self._pool(pool, room, conditions)
            told.append(message)
            room -= message.ByteSize()
            if room <= 0:
                break
            await self.ledger.clock.sleep(0)  # others are answered between two of a thousand pools
        if len(told) < len(pools):
            shares = f"{len(told):,} of {len(pools):,}"
            conditions.append(
                f"status: only {shares} pools have room here: ask for one by its name"
            )
        return fleet_pb2.StatusResponse(
            version=version("moe-placer"),
            uptime_s=self.ledger.clock.monotonic() - self._begun_s,
            pools=told,
            conditions=conditions,
            ledger_id=self.ledger.records.id,
        )

    @answering
    async def ScaleTo(self, request: Any) -> Any:
        key, pool = request.idempotency_key, request.pool
        known = self.loop.arbiter.history.known(key)
        if request.dry_run and known is None:
            change = await sized(self.loop.arbiter, self.loop.planner, pool, request.ranks)
            if change[2]:
                raise FleetError(change[2])
            return fleet_pb2.ScaleToResponse(resize=wire.resize(change[0]))
        if request.ready_pods:
            self.loop.reported.add(pool, wire.pods(request.ready_pods))
        if known is None:
            reason = request.reason or f"an operator wants {request.ranks} ranks"
            known = await self.loop.loads.scale(pool, request.ranks, key, reason, request.wait)
        operation = pods.operation(self.loop, known)
        released = pods.releasable(self.loop, known.pool)
        return fleet_pb2.ScaleToResponse(
            operation=operation, resize=operation.resize, released_pods=released
        )

    @answering
    async def ReportCapacity(self, request: Any) -> Any:
        pool, allocated = request.pool, wire.number("allocated", request.allocated)
        if not pool or len(pool) > NAME:
            raise RequestError(f"capacity is a pool's: give its name, of up to {NAME} characters")
        self.loop.reported.report(pool, allocated, wire.pods(request.ready_pods))
        return fleet_pb2.ReportCapacityResponse(
            stock=pods.stock(self.loop, pool), releasable_pods=pods.releasable(self.loop, pool)
        )

    @answering
    async def Operations(self, request: Any) -> Any:
        records, pool = self.ledger.records, request.pool or None
        if request.operation_id:
            found = [self.loop.arbiter.history.get(request.operation_id)]
        else:
            limit = min(request.limit or 20, wire.MOST)
            found = records.newest("operation", limit=limit, pool=pool)
        told = wire.listed(partial(pods.operation, self.loop), found)
        return fleet_pb2.OperationsResponse(operations=told)

    def _pool(self, pool: Pool, room: int, conditions: list[str]) -> Any:
        """room: bytes that its engines may take; those that are left out are a condition"""
        settings = self.loop.config.of(pool.name)
        running, engines = self.loop.arbiter.running, pool.engines
        told = wire.fitting((self._engine(name, them) for name, them in engines.items()), room)
        if len(told) < len(engines):
            shares = f"{len(told):,} of {len(engines):,}"
            conditions.append(f"status: only {shares} engines of {pool.name} have room here")
        groups = list(pool.groups.values())
        message = fleet_pb2.Pool(
            name=pool.name, model=pool.model.name, mode=settings.mode, window_s=settings.window_s,
            engines=told, widths=[self._width(group) for group in groups],
            experts=pool.model.experts, control=settings.control,
        )  # fmt: skip
        if groups:  # of the most engines, as those know who have not heard of widths
            first = message.widths[0]
            for field in ("ranks", "slots", "tokens", "balancedness", "outcome", "reason",
                          "decided_s"):  # fmt: skip
                setattr(message, field, getattr(first, field))
            pace = groups[0].pace(settings.phase)
            if pace is not None:
                message.step_s, message.busy = pace.step_s or 0.0, pace.busy
        if homing := self.loop.homings.of.get(pool.name):
            message.homing.reason, message.homing.step = homing.reason, homing.step
            for by, one in homing.groups.items():
                message.homing.groups.add(by=by, **asdict(one))
        if applied := self._plans(pool.name, PlanState.APPLIED):
            message.applied_plan, message.applied_s = applied[0].id, applied[0].at_s
        if proposed := self._plans(pool.name, PlanState.PROPOSED, PlanState.APPROVED):
            message.proposed_plan = proposed[0].id
        if running is not None and running.pool == pool.name:
            message.operation.CopyFrom(pods.operation(self.loop, running))
        if (waiting := self.loop.arbiter.queue.of(pool.name)) is not None:
            message.waiting.CopyFrom(pods.operation(self.loop, waiting))
        message.stock.CopyFrom(pods.stock(self.loop, pool.name))
        message.releasable_pods.extend(pods.releasable(self.loop, pool.name))
        return message

    def _width(self, group: Group) -> Any:
        view, pool, width = self.loop.views.get((group.pool, group.ranks)), group.pool, group.ranks
        message = fleet_pb2.Width(
            ranks=width, slots=group.slots, engines=len(group.engines),
            tokens=group.tokens(self.loop.config.of(pool).phase),
        )  # fmt: skip
        if view is not None:
            decision = view.decision
            message.outcome, message.reason = decision.outcome, decision.reason
            message.decided_s = view.at_s
            message.balancedness = view.score.balancedness if view.score else 0.0
        if applied := self._plans(pool, PlanState.APPLIED, width=width):
            message.applied_plan = applied[0].id
        if proposed := self._plans(pool, PlanState.PROPOSED, PlanState.APPROVED, width=width):
            message.proposed_plan = proposed[0].id
        return message

    def _plans(self, pool: str, *states: PlanState, width: int = 0) -> list[Record[Kept]]:
        return self.loop.arbiter.plans.in_state(pool, *states, width=width)

    def _engine(self, name: str, members: list[Member]) -> Any:
        registrations, width = [member.registration for member in members], width_of(members)
        conditions = list(dict.fromkeys(one.condition for one in registrations if one.condition))
        more = [f"and {len(conditions) - CONDITIONS} more"] if len(conditions) > CONDITIONS else []
        return fleet_pb2.Engine(
            name=name,
            digest=registrations[0].digest,
            epoch=max(one.epoch for one in registrations),
            workers=len(members),
            silent_s=max(map(self.fleet.silent_s, members)),
            tokens=sum(one.tokens for one in registrations),
            dropped=sum(member.missed for member in members),
            conditions=[*conditions[:CONDITIONS], *more],
            ranks=width.ranks if width else 0,
            slots=width.slots if width else 0,
            endpoints=_endpoints(registrations),
            rank_pods=pods.rank_pods(members),
        )


class Ledgers(LedgerServiceServicer):
    """What was. The ledger is read on one thread, one question after another: it may be large."""

    def __init__(self, loop: Loop, refusals: Spacing) -> None:
        self.refusals, self._clock = refusals, loop.ledger.clock
        self.records = loop.ledger.records
        self._beside = ThreadPoolExecutor(1, "ledger")
        self._turn, self._free_s = asyncio.Lock(), 0.0

    @answering
    async def History(self, request: Any) -> Any:
        limit, pool = min(request.limit or 50, wire.MOST), request.pool or None
        return await self._read(_history, self.records, limit, pool)

    @answering
    async def Explain(self, request: Any) -> Any:
        return await self._read(_explain, self.records, request.id)

    async def _read(self, read: Callable[..., Any], *what: Any) -> Any:
        """After much was read the next waits, so that agents are served: it is READS of the time
        that is spent here."""
        async with self._turn:
            begun_s = self._clock.monotonic()
            if begun_s < self._free_s:
                await self._clock.sleep(self._free_s - begun_s)
                begun_s = self._clock.monotonic()
            found = await asyncio.get_running_loop().run_in_executor(self._beside, read, *what)
            took_s = self._clock.monotonic() - begun_s
            self._free_s = begun_s + took_s / READS
        return found


def _endpoints(registrations: list[Registration]) -> list[Any]:
    """Where its ranks take requests."""
    found: dict[str, set[int]] = {}
    for one in registrations:
        if one.api:
            rank = one.worker.ep_rank // max(one.worker.tp_size, 1)
            found.setdefault(one.api, set()).add(rank)
    return [
        fleet_pb2.Endpoint(address=api, ranks=sorted(them)) for api, them in sorted(found.items())
    ]


def _history(records: Ledger, limit: int, pool: str | None) -> Any:
    """The steps of an operation are told as one, the last."""
    found = records.newest_of_each(limit, pool, but=["placement", rank_loads.KIND])
    return fleet_pb2.HistoryResponse(records=wire.listed(wire.record, found))


def _explain(records: Ledger, id: str) -> Any:
    """Of a story that is too long for an answer the last part."""
    found = explain.story(records, id, wire.MOST)
    latest = reversed(wire.listed(wire.record, found[::-1]))
    return fleet_pb2.ExplainResponse(lines=explain.sentences(found), records=latest)
