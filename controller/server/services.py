"""ProfileService and PlacementService: counts in, plans out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from controller.changes.plans import Kept
from controller.engines.vllm_engines import VllmEngines
from controller.fleet.pools import NOBODY, Member, Pool, WorkerId
from controller.fleet.traces import Reading, Request
from controller.fleet.workers import FleetError
from controller.ledger.ledger import Record
from controller.loop import Loop
from controller.server.answers import answering, streaming
from controller.server.callers import CALLER, Role
from controller.server.given_tables import GivenTables
from controller.server.intake import LIGHT
from controller.server.messages import pods, sampled, wire
from controller.server.strangers import Spacing
from placer.errors import PlacementError, RoutingError
from placer.files.plans import parse_plan, plan_text
from placer.optimizers import known as known_optimizer
from placer.plan import Hold, Plan
from placer.v1 import placement_pb2, profile_pb2
from placer.v1.placement_pb2_grpc import PlacementServiceServicer
from placer.v1.profile_pb2_grpc import ProfileServiceServicer

VALUES, SLOT_VALUES = 10_000, 12  # of a plan file: an expert and a move have 7, its reason a few
STATE = ("plan", "operation", "decision", "acknowledgement", "policy")
TOLD = (*STATE, "reading")
T = TypeVar("T")
VALUE = 40  # bytes of each, in the mean; without a reason it is five

# gRPC names methods as protos do.
# ruff: noqa: N802


class Profiles(ProfileServiceServicer):
    def __init__(self, loop: Loop, refusals: Spacing) -> None:
        self.refusals = refusals
        self.fleet, self.config, self.traces = loop.fleet, loop.config, loop.traces
        self.ledger = loop.ledger
        self._beside = ThreadPoolExecutor(1, "push")
        self._spacing = Spacing(loop.ledger.clock)  # of large pushes, by worker

    @streaming
    async def Push(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for data in requests:
            answer = await self._take(data)
            del data  # hundreds of workers would each have their last one here until their next
            yield answer

    async def _take(self, data: bytes) -> Any:
        is_large = len(data) > LIGHT
        push = await self._read(is_large, wire.push, data)
        CALLER.get().check(push.id.pool, push.id.engine, push.id.worker)
        if is_large:
            id = push.id
            await self._spacing.turn(f"{id.pool}/{id.engine}/{id.worker}", len(data))
        said = self.fleet.member(push.id).registration
        refused, wants_affinity = push.refused, self._wants_affinity(push.id)
        if not refused:
            deltas = push.deltas if wants_affinity else [one.lean for one in push.deltas]
            wanted, found = self.config.of(push.id.pool).traces, []
            try:
                if wanted.requests and push.trace is not None:
                    parts = push.trace, deltas, wanted.token_ids
                    found = await self._read(is_large, sampled.requests, *parts)
                if self.fleet.push(push.id, push.sequence, deltas, push.paces):
                    rank = said.worker.ep_rank if said.worker.tp_size <= 1 else -1
                    where = said.digest, push.id.engine
                    at = [replace(one, plan=where[0], engine=where[1]) for one in found]
                    at = [one if one.rank >= 0 else replace(one, rank=rank) for one in at]
                    self.traces.add(push.id.pool, at)
            except RoutingError as error:
                refused = str(error)
        return profile_pb2.PushResponse(
            sequence=push.sequence, refused=refused, send_affinity=wants_affinity
        )

    @streaming
    async def ReadTraces(self, request: Any) -> AsyncIterator[Any]:
        """Written down before anything is given out."""
        pool, phase = self.fleet.pool(request.pool), "mixed"
        if request.phase:
            phase = wire.phase(request.phase)
        if not self.config.of(pool.name).traces.requests:
            raise FleetError(f"{pool.name} samples no requests: set traces.requests of the pool")
        found: dict[str, list[Request]] = {}
        for _, one in self.traces.of(pool.name, pool.model, phase):
            found.setdefault(one.phase, []).append(one)
        reading = Reading(
            who=CALLER.get().reader,
            requests={name: len(found[name]) for name in sorted(found)},
            token_ids=any(one.token_ids is not None for them in found.values() for one in them),
        )
        id = self.ledger.next_id("reading", "reading")
        self.ledger.write("reading", id, reading.told, reading, pool=pool.name)
        for name, them in found.items():
            for answer in sampled.answers(pool.model, name, them):
                yield answer

    async def _read(self, is_large: bool, read: Callable[..., T], *what: Any) -> T:
        """Large ones on a thread, one after another: others are answered meanwhile."""
        if not is_large:
            return read(*what)
        return await asyncio.get_running_loop().run_in_executor(self._beside, read, *what)

    def _wants_affinity(self, id: WorkerId) -> bool:
        """From one worker of a pool, where tokens travel by its placement: it is large. What others
        send of it is left out. It is the same one as long as it is heard, so that not every push
        looks through all."""
        if not self.config.of(id.pool).asks_for_affinity:
            return False
        pool = self.fleet.pool(id.pool)
        chosen = pool.members.get(pool.teller)
        if chosen is None or not self._records(chosen):
            recording = (key for key, member in pool.members.items() if self._records(member))
            pool.teller = min(recording, default=NOBODY)
        return (id.engine, id.worker) == pool.teller

    def _records(self, member: Member) -> bool:
        return member.registration.worker.records and self.fleet.is_heard(member)


class Placements(PlacementServiceServicer):
    def __init__(self, loop: Loop, refusals: Spacing, offers: VllmEngines) -> None:
        self.refusals = refusals
        self.loop, self.arbiter, self.offers = loop, loop.arbiter, offers
        self.tables = GivenTables(loop)
        self._beside = ThreadPoolExecutor(1, "plans")

    @answering
    async def Plan(self, request: Any) -> Any:
        clock = self.loop.ledger.clock
        begun_s = clock.monotonic()
        answer, _ = await self._answer(request.pool, request.optimizer, request.ranks)
        return placement_pb2.PlanResponse(
            outcome=wire.outcome(answer),
            reason=answer.reason,
            file=plan_text(answer).encode() if isinstance(answer, Plan) else b"",
            solve_s=clock.monotonic() - begun_s,
        )

    @answering
    async def Propose(self, request: Any) -> Any:
        before = ""
        if request.file:
            answer: Any = await self._given(self.loop.fleet.pool(request.pool), request.file)
        else:
            answer, before = await self._answer(request.pool, "", request.ranks)
        if not isinstance(answer, Plan):
            return placement_pb2.ProposeResponse(outcome=wire.outcome(answer), reason=answer.reason)
        reason = request.reason or answer.reason or "an operator's plan"
        record = self.arbiter.propose(request.pool, answer, before, reason)
        return placement_pb2.ProposeResponse(
            outcome="plan", reason=answer.reason, plan=self._plan(record)
        )

    @answering
    async def Approve(self, request: Any) -> Any:
        reason = request.reason or "approved by an operator"
        told = (request.version, reason, request.approver, request.digest, request.idempotency_key)
        record = self.arbiter.plans.approve(request.plan_id, *told)
        return placement_pb2.ApproveResponse(plan=self._plan(record))

    @answering
    async def Reject(self, request: Any) -> Any:
        told = (request.version, request.reason or "rejected by an operator", request.approver)
        record = self.arbiter.plans.reject(request.plan_id, *told)
        return placement_pb2.RejectResponse(plan=self._plan(record))

    @answering
    async def Apply(self, request: Any) -> Any:
        if (known := self.arbiter.history.known(request.idempotency_key)) is not None:
            return placement_pb2.ApplyResponse(operation=pods.operation(self.loop, known))
        self.arbiter.refuse_if_busy()  # before the plan is approved, and begins some time else
        reason = request.reason or "applied by an operator"
        told = (request.version, reason, request.approver)
        plan = self.arbiter.plans.approve(request.plan_id, *told)
        found = await self.arbiter.begin(plan, request.idempotency_key, reason)
        return placement_pb2.ApplyResponse(operation=pods.operation(self.loop, found))

    @answering
    async def Rollback(self, request: Any) -> Any:
        found = self.arbiter.history.known(request.idempotency_key)
        if found is None:
            reason = request.reason or "an operator wants it back"
            found = await self.arbiter.rollback(request.pool, request.idempotency_key, reason)
        return placement_pb2.RollbackResponse(operation=pods.operation(self.loop, found))

    @answering
    async def Get(self, request: Any) -> Any:
        plans, fleet = self.arbiter.plans, self.loop.fleet
        record = plans.get(request.plan_id)
        found = self._plan(record, plans.file(request.plan_id))
        if (pool := fleet.pools.get(record.pool)) is not None:
            found.acknowledgements.extend(pods.acknowledgements(fleet, pool, record.value.width))
        return placement_pb2.GetResponse(plan=found)

    @answering
    async def List(self, request: Any) -> Any:
        records, limit = self.loop.ledger.records, min(request.limit or 20, wire.MOST)
        found = records.newest("plan", limit=limit, pool=request.pool or None)
        return placement_pb2.ListResponse(plans=wire.listed(self._plan, found))

    def _plan(self, record: Record[Kept], file: bytes = b"") -> Any:
        found = wire.plan(record, self.loop.ledger.records.id, file)
        found.queue = self.arbiter.queue.place(record.id)
        return found

    @streaming
    async def Watch(self, request: Any) -> AsyncIterator[Any]:
        if request.engine or Role.OPERATOR not in CALLER.get().role:
            CALLER.get().check(request.pool, request.engine)
            offers = self.offers.offers(request.pool, request.engine, request.after_epoch)
            async for epoch, file in offers:
                yield placement_pb2.WatchResponse(epoch=epoch, file=file)
            return
        cursor = request.cursor if request.HasField("cursor") else None
        kinds = STATE if cursor == 0 else TOLD
        async for found in self.loop.ledger.watch(cursor, kinds):
            if isinstance(found, int):
                yield placement_pb2.WatchResponse(cursor=found, synced=True)
            elif found.kind in TOLD and request.pool in ("", found.pool):
                yield placement_pb2.WatchResponse(record=wire.record(found), cursor=found.number)

    @streaming
    async def Tables(self, request: Any) -> AsyncIterator[Any]:
        given = self.tables.watched(request) if request.watch else self.tables.once(request)
        async for answer in given:
            yield answer

    async def _given(self, pool: Pool, file: bytes) -> Any:
        """A plan file, read on a thread. Raises PlacementError for one that lists more than a plan
        for this pool can."""
        slots = max(pool.slots.values())
        most = VALUES + SLOT_VALUES * pool.model.layers * slots
        if len(file) > most * VALUE or file.count(b",") > most:
            raise PlacementError(
                f"the proposed plan has {len(file):,} bytes, and one for {pool.model.layers} layers"
                f" of {slots} slots {most * VALUE:,} at most, of {most:,} values: is it for "
                "this pool?"
            )
        text, name = file.decode(errors="replace"), "the proposed plan"
        running = asyncio.get_running_loop()
        return await running.run_in_executor(self._beside, parse_plan, text, name)

    async def _answer(self, pool: str, optimizer: str, ranks: int) -> tuple[Any, str]:
        """What an optimizer says now, and the digest of the map that it starts from."""
        known = self.loop.fleet.pool(pool)
        if (group := known.group(ranks)) is None:
            widths = " or ".join(map(str, known.groups)) or "a width that all its ranks agree on"
            raise FleetError(f"no engine of {pool} has {ranks} ranks: there are such of {widths}")
        chosen = optimizer or self.loop.config.of(pool).optimizer
        known_optimizer(chosen)
        asked = await self.loop.question(group)
        if isinstance(asked, Hold):
            return asked, ""
        problem, unseen = asked
        return await self.loop.planner.answer(problem, chosen, unseen), problem.start.digest
