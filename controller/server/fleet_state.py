"""FleetService and LedgerService: what the fleet is, and what was."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from controller.changes.plans import PlanState
from controller.fleet.workers import Member, Pool
from controller.ledger.ledger import Ledger
from controller.loop import Loop
from controller.server import explain, wire
from controller.server.answers import answering
from controller.server.callers import CALLER
from placer.v1 import fleet_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, LedgerServiceServicer

CONDITIONS = 4  # of an engine's workers that are told

# gRPC names methods as protos do.
# ruff: noqa: N802


class FleetState(FleetServiceServicer):
    def __init__(self, loop: Loop) -> None:
        self.loop, self.fleet, self.ledger = loop, loop.fleet, loop.ledger
        self._begun_s = self.ledger.clock.monotonic()

    @answering
    async def Register(self, request: Any) -> Any:
        id = wire.worker_id(request.id)
        CALLER.get().check(id.pool, id.engine, id.worker)
        registration = wire.registration(request)
        sequence = self.fleet.register(registration)
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
        )

    @answering
    async def ScaleTo(self, request: Any) -> Any:
        known = self.loop.arbiter.history.known(request.idempotency_key)
        if known is None:
            reason = request.reason or f"an operator wants {request.ranks} ranks"
            known = await self.loop.arbiter.scale(
                request.pool, request.ranks, request.idempotency_key, reason
            )
        return fleet_pb2.ScaleToResponse(operation=wire.operation(known))

    @answering
    async def Operations(self, request: Any) -> Any:
        records, pool = self.ledger.records, request.pool or None
        if request.operation_id:
            found = [self.loop.arbiter.history.get(request.operation_id)]
        else:
            limit = min(request.limit or 20, wire.MOST)
            found = records.newest("operation", limit=limit, pool=pool)
        return fleet_pb2.OperationsResponse(operations=wire.listed(wire.operation, found))

    def _pool(self, pool: Pool, room: int, conditions: list[str]) -> Any:
        """room: bytes that its engines may take; those that are left out are a condition"""
        arbiter, view, policy = (
            self.loop.arbiter,
            self.loop.views.get(pool.name),
            self.loop.config.of,
        )
        applied = arbiter.plans.in_state(pool.name, PlanState.APPLIED)
        proposed = arbiter.plans.in_state(pool.name, PlanState.PROPOSED, PlanState.APPROVED)
        running = arbiter.running
        engines = pool.engines
        told = wire.fitting((self._engine(name, them) for name, them in engines.items()), room)
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

    def _engine(self, name: str, members: list[Member]) -> Any:
        registrations = [member.registration for member in members]
        conditions = list(dict.fromkeys(one.trouble for one in registrations if one.trouble))
        more = [f"and {len(conditions) - CONDITIONS} more"] if len(conditions) > CONDITIONS else []
        return fleet_pb2.Engine(
            name=name,
            digest=registrations[0].digest,
            epoch=max(one.epoch for one in registrations),
            workers=len(members),
            silent_s=max(map(self.fleet.silent_s, members)),
            tokens=sum(one.tokens for one in registrations),
            dropped=sum(max(member.registration.dropped, member.lost) for member in members),
            conditions=[*conditions[:CONDITIONS], *more],
        )


def _pace(pool: Pool, phase: str) -> dict[str, Any]:
    pace = pool.pace(phase)
    return {} if pace is None else {"step_s": pace.step_s or 0.0, "busy": pace.busy}


class Ledgers(LedgerServiceServicer):
    """What was. The ledger is read on one thread, one question after another: it may be large."""

    def __init__(self, loop: Loop) -> None:
        self.records = loop.ledger.records
        self._beside = ThreadPoolExecutor(1, "ledger")

    @answering
    async def History(self, request: Any) -> Any:
        limit, pool = min(request.limit or 50, wire.MOST), request.pool or None
        return await self._read(_history, self.records, limit, pool)

    @answering
    async def Explain(self, request: Any) -> Any:
        return await self._read(_explain, self.records, request.id)

    async def _read(self, read: Callable[..., Any], *what: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._beside, read, *what)


def _history(records: Ledger, limit: int, pool: str | None) -> Any:
    """The steps of an operation are told as one, the last."""
    found = records.newest_of_each(limit, pool, but=["placement"])
    return fleet_pb2.HistoryResponse(records=wire.listed(wire.record, found))


def _explain(records: Ledger, id: str) -> Any:
    """Of a story that is too long for an answer the last part."""
    found = explain.story(records, id, wire.MOST)
    latest = reversed(wire.listed(wire.record, found[::-1]))
    return fleet_pb2.ExplainResponse(lines=explain.sentences(found), records=latest)
