"""Where changes are asked for, by the loop and by operators, and the arbiter: one disruptive action
at a time, over all pools."""

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from itertools import takewhile

from controller.config import Config
from controller.fleet import (
    FORGOTTEN_S,
    NAME,
    SILENT_S,
    Fleet,
    FleetError,
    Pool,
    UnknownError,
    kinds,
)
from controller.journal import Journal
from controller.operations import Operation, Operations, Phase
from controller.plans import Plans, PlanState
from controller.ports import Engines
from controller.standings import refuse_lost, same_experts, standings
from controller.store import Conflict, Record, Unreadable
from placer.checks import violations
from placer.errors import PlacementError
from placer.placement import Placement
from placer.plan import Plan
from placer.refusal import refusal

log = logging.getLogger("placer.controller")

ENDS = {
    Phase.SUCCEEDED: PlanState.APPLIED,
    Phase.ROLLED_BACK: PlanState.ROLLED_BACK,
    Phase.HALTED: PlanState.HALTED,
}


class BusyError(FleetError):
    """Another operation is at work."""


class Desk:
    """Of one event loop."""

    def __init__(self, config: Config, journal: Journal, fleet: Fleet, engines: Engines) -> None:
        self.config, self.journal, self.fleet, self.engines = config, journal, fleet, engines
        self.plans = Plans(journal)
        self.operations = Operations(journal, engines, config)
        # Of operations that ended, by pool.
        self.ended: Counter[tuple[str, ...]] = Counter()
        self.copied_bytes: Counter[tuple[str, ...]] = Counter()
        self.moved: Counter[tuple[str, ...]] = Counter()
        self.longest_pause_s: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Lock()  # between looking whether somebody is at work, and being it

    @property
    def running(self) -> Record | None:
        """The operation that is not at its end yet."""
        return next(iter(self.journal.open("operation")), None)

    async def stands(self, pool: Pool) -> Placement:
        """The map of an engine that stands where the last change led, or else of the first that
        answers. Raises EngineLostError if none does."""
        there = await standings(self.engines, pool)
        last = self.operations.last_change(pool.name)
        if last is not None and Operation.of(last).phase is Phase.SUCCEEDED:
            with suppress(Unreadable):
                goal = self.journal.placement(last.body["goal"])
                there.sort(key=lambda one: not same_experts(one[1], goal))
        return there[0][1]

    async def strays(self, pool: Pool, placement: Placement) -> list[str]:
        """Engines whose ranks hold other experts than they do in ``placement``."""
        there = await standings(self.engines, pool)
        return [engine for engine, stands in there if not same_experts(stands, placement)]

    def propose(self, pool: str, plan: Plan, before: str, reason: str) -> Record:
        """Keep a plan for approval. Raises PlacementError if it may not be applied."""
        policy, known = self.config.of(pool), self.fleet.pool(pool)
        for member in kinds(known.members.values()):
            if reason_not := refusal(plan, member.said.worker):
                raise PlacementError(reason_not)
        hardware = policy.hardware(known.ranks)
        broken = violations(plan.placement, policy.objective, known.model, hardware)
        if broken:
            raise PlacementError(broken[0])
        return self.plans.propose(pool, plan, before, reason)

    async def begin(self, plan: Record, key: str, reason: str) -> Record:
        """Begin to apply an approved plan; returns its operation."""
        async with self._begun:
            if (known := self.known(key)) is not None:
                return known
            self.refuse_if_busy()
            pool = self.fleet.pool(plan.pool)
            homes = await self._homes(pool)
            before, goal = plan.body["before"], plan.body["digest"]
            why = ""
            if before and before not in homes.values():
                why = f"{plan.id} starts from another map than the pool's now: propose again"
            try:
                self.journal.placement(goal)
            except Unreadable as error:
                why = f"{plan.id} cannot be applied: {error}"
            if why:
                self.plans.move(plan, PlanState.SUPERSEDED, why)
                raise FleetError(why)
            applying = self.plans.moved(plan, PlanState.APPLYING, reason)
            return self._start("apply", pool, plan.id, goal, homes, key, reason, applying)

    async def rollback(self, pool_name: str, key: str, reason: str) -> Record:
        """Have the pool's operation go back, or the pool to where it was before the last one."""
        running = self.running
        if running is not None and running.pool == pool_name:
            self.operations.abort(running, reason or "an operator wants it back", key)
            return running
        async with self._begun:
            if (known := self.known(key)) is not None:
                return known
            self.refuse_if_busy()
            pool = self.fleet.pool(pool_name)
            change = self.operations.to_undo(pool_name)
            goal = next(iter(change.homes.values()))
            self.journal.placement(goal)
            homes = await self._homes(pool)
            return self._start("rollback", pool, change.plan_id, goal, homes, key, reason)

    def scale(self, pool_name: str, ranks: int, key: str, reason: str) -> Record:
        """Write down that this cannot be done yet."""
        pool = self.fleet.pool(pool_name)
        why = (
            f"{pool_name} stays at {pool.ranks} ranks: its engines cannot change their width to "
            f"{ranks} while they serve"
        )
        operation = Operation(
            self._next_id(), key, pool_name, "scale", "", "", pool.model.expert_bytes,
            self.journal.clock.now_s(), phase=Phase.REFUSED, why=why,
        )  # fmt: skip
        return self.journal.write(
            "operation", operation.id, reason, asdict(operation), pool=pool_name
        )

    def operation(self, id: str) -> Record:
        record = self.journal.ledger.get("operation", id)
        if record is None:
            raise UnknownError(f"no operation {id[:NAME]!r}: `placer history` lists them")
        return record

    def known(self, key: str) -> Record | None:
        """The operation that was begun, or told to go back, with this idempotency key."""
        for record in self.journal.ledger.newest("operation") if key else ():
            if key in (record.body["key"], record.body.get("back_key")):
                return record
        return None

    def last_changes(self, pool: str) -> tuple[float | None, int]:
        """Unix time at which the pool's last operation ended, and how many in a row failed."""
        ended = [
            record
            for record in self.journal.ledger.newest("operation", pool=pool, final=True)
            if record.body["phase"] != Phase.REFUSED
        ]
        failed = takewhile(lambda record: record.body["phase"] != Phase.SUCCEEDED, ended)
        return ended[0].at_s if ended else None, sum(1 for _ in failed)

    async def resume(self) -> None:
        """Go on with what a killed controller left, or a full disk held up."""
        if self._task is not None and not self._task.done():
            return
        if self._task is not None and (error := self._task.exception()) is not None:
            self._task = None
            raise error
        if (record := self.running) is not None:
            silent_s = self.journal.clock.now_s() - record.at_s
            # Its agents may still be to be heard; or they are gone, and others wait for its end.
            if record.pool in self.fleet.pools or silent_s > FORGOTTEN_S:
                self._task = asyncio.create_task(self._run(record, is_restart=True))
            return
        for plan in self.journal.open("plan"):  # killed before it was told
            if plan.body["state"] == PlanState.APPLYING:
                if (operation := self.operations.of_plan(plan)) is not None:
                    self._close(Operation.of(operation))
                else:
                    why = "its operation cannot be read: it is not known how far it came"
                    self.plans.move(plan, PlanState.HALTED, why)
            elif plan.body["state"] == PlanState.APPLIED:
                last = self.operations.last_change(plan.pool)
                if last and last.body["kind"] == "rollback" and last.number > plan.number:
                    self._close(Operation.of(last))

    def placements_in_use(self) -> set[str]:
        """Digests that a plan, an operation or a worker still speaks of."""
        ledger = self.journal.ledger
        plans, operations = ledger.newest("plan"), ledger.newest("operation")
        found = {record.body[end] for record in plans for end in ("digest", "before")}
        found |= {record.body["goal"] for record in operations}
        found |= {home for record in operations for home in record.body["homes"].values()}
        pools = self.fleet.pools.values()
        return found | {one.said.digest for pool in pools for one in pool.members.values()}

    async def settle(self) -> None:
        """Wait for what runs."""
        if self._task is not None:
            await self._task

    def refuse_if_busy(self) -> None:
        """Raises BusyError, which names the operation that is at work."""
        if (running := self.running) is not None:
            at = Operation.of(running)
            raise BusyError(
                f"{running.id} is at work on {running.pool} ({at.progress}): wait for it, or "
                f"placer rollback {running.pool}"
            )

    async def _homes(self, pool: Pool) -> dict[str, str]:
        """Each engine's digest, whose placement is kept to go back to. Engines that are gone are
        left out, and brought to the rest if they come back."""
        now_s = self.journal.clock.now_s()
        heard = [
            engine
            for engine, members in pool.engines.items()
            if any(now_s - member.heard_s < SILENT_S for member in members)
        ]
        homes = {}
        for engine in heard or pool.engines:
            placement = await self.engines.stands(pool.name, engine)
            refuse_lost(engine, placement)
            homes[engine] = self.journal.keep_placement(placement)
        return homes

    def _start(
        self, kind: str, pool: Pool, plan: str, goal: str, homes: dict[str, str], key: str,
        reason: str, *beside: Record,
    ) -> Record:  # fmt: skip
        """Written down together with what is ``beside``, or not at all."""
        now_s = self.journal.clock.now_s()
        operation = Operation(
            self._next_id(), key, pool.name, kind, plan, goal, pool.model.expert_bytes, now_s,
            homes, epoch=max(int(now_s * 1000), self._newest_epoch(pool) + 1),
        )  # fmt: skip
        body = asdict(operation)
        first = Record("operation", operation.id, 1, now_s, reason, body, pool.name, final=False)
        record = self.journal.put(first, *beside)
        self._task = asyncio.create_task(self._run(record))
        return record

    def _next_id(self) -> str:
        return self.journal.next_id("operation", "op")

    async def _run(self, record: Record, is_restart: bool = False) -> None:
        try:
            ended = await self.operations.run(record, is_restart)
        except Conflict:
            log.exception("placer: %s is run by somebody else, too", record.id)
            raise
        operation = Operation.of(ended)
        log.info("placer: %s %s %s", operation.id, operation.phase, operation.why)
        self._count(operation)
        self._close(operation)

    def _count(self, operation: Operation) -> None:
        pool = operation.pool
        self.ended[pool, operation.phase] += 1
        self.copied_bytes[pool,] += operation.copied_bytes
        self.moved[pool,] += operation.moved
        self.longest_pause_s[pool] = operation.longest_pause_s

    def _close(self, operation: Operation) -> None:
        """Tell the plans how it ended."""
        plans, reason = self.plans, operation.why or f"{operation.id} {operation.phase}"
        applied = plans.in_state(operation.pool, PlanState.APPLIED)
        if operation.kind == "rollback":
            if operation.phase is Phase.SUCCEEDED:
                for record in applied:
                    plans.move(record, PlanState.ROLLED_BACK, reason)
                if (again := self._plan_of(operation)) is not None:
                    plans.move(again, PlanState.APPLIED, f"{operation.id} went back to it")
            return
        if operation.phase is Phase.SUCCEEDED:
            for record in applied:
                plans.move(record, PlanState.SUPERSEDED, f"{operation.plan_id} is applied")
        with suppress(Unreadable, UnknownError):  # then nobody is to be told
            record = plans.get(operation.plan_id)
            if record.body["state"] == PlanState.APPLYING:
                plans.move(record, ENDS[operation.phase], reason)

    def _plan_of(self, operation: Operation) -> Record | None:
        """The newest of the last plans that leads where the operation led."""
        for record in self.journal.ledger.newest("plan", limit=20, pool=operation.pool):
            with suppress(Unreadable):
                goal, map_of_it = map(
                    self.journal.placement, (operation.goal, record.body["digest"])
                )
                ended = record.body["state"] in (PlanState.SUPERSEDED, PlanState.ROLLED_BACK)
                if ended and same_experts(map_of_it, goal):
                    return record
        return None

    def _newest_epoch(self, pool: Pool) -> int:
        """What agents have applied or refused last: they only listen to later ones."""
        said = [member.said for member in pool.members.values()]
        return max((max(one.epoch, one.refused_epoch) for one in said), default=0)
