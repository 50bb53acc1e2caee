"""Where changes are asked for, by the loop and by operators, and the arbiter: one disruptive action
at a time, over all pools."""

import asyncio
import logging
from collections import Counter
from dataclasses import asdict

from controller.config import Config
from controller.fleet import Fleet, FleetError, Pool, UnknownError
from controller.journal import Journal
from controller.operations import Operation, Operations, Phase
from controller.plans import Plans, PlanState
from controller.ports import EngineLostError, Engines
from controller.store import Conflict, Record
from placer.agent.refusal import refusal
from placer.checks import violations
from placer.errors import PlacementError
from placer.placement import Placement
from placer.plan import Plan

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
    def is_busy(self) -> bool:
        return self.running is not None

    @property
    def running(self) -> Record | None:
        """The operation that is not at its end yet."""
        found = self.journal.ledger.newest("operation", limit=1, final=False)
        return found[0] if found else None

    async def stands(self, pool: Pool) -> Placement:
        """The map of the pool's first engine that says it. Raises EngineLostError if none does."""
        why = "it has no engines"
        for engine in pool.engines:
            try:
                return await self.engines.stands(pool.name, engine)
            except EngineLostError as error:
                why = str(error)
        raise EngineLostError(f"{pool.name}: {why}")

    def propose(self, pool: str, plan: Plan, before: str, reason: str) -> Record:
        """Keep a plan for approval. Raises PlacementError if it may not be applied."""
        policy, known = self.config.of(pool), self.fleet.pool(pool)
        workers = [member.said.worker for members in known.engines.values() for member in members]
        for worker in workers:
            if reason_not := refusal(plan, worker):
                raise PlacementError(reason_not)
        hardware = policy.hardware(known.ranks)
        broken = violations(plan.placement, policy.objective, known.model, hardware)
        if broken:
            raise PlacementError(broken[0])
        return self.plans.propose(pool, plan, before, reason)

    async def begin(self, plan: Record, key: str, reason: str) -> Record:
        """Begin to apply an approved plan; returns its operation."""
        async with self._begun:
            self._refuse_if_busy()
            pool = self.fleet.pool(plan.pool)
            homes = await self._homes(pool)
            before = plan.body["before"]
            if before and before not in homes.values():
                why = f"{plan.id} starts from another map than the pool's now: propose again"
                self.plans.move(plan, PlanState.SUPERSEDED, why)
                raise FleetError(why)
            self.plans.move(plan, PlanState.APPLYING, reason)
            return self._start("apply", pool, plan.id, plan.body["digest"], homes, key, reason)

    async def rollback(self, pool_name: str, key: str, reason: str) -> Record:
        """Have the pool's operation go back, or the pool to where it was before the last one."""
        running = self.running
        if running is not None and running.pool == pool_name:
            self.operations.abort(reason or "an operator wants it back")
            return running
        async with self._begun:
            self._refuse_if_busy()
            pool = self.fleet.pool(pool_name)
            last = self._last_change(pool_name)
            if last is None:
                raise FleetError(f"{pool_name} was never changed: there is nothing to roll back to")
            change = Operation.of(last)
            goal = next(iter(change.homes.values()))
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
            raise UnknownError(f"no operation {id!r}: `placer history` lists them")
        return record

    def known(self, key: str) -> Record | None:
        """The operation that was begun with this idempotency key."""
        for record in self.journal.ledger.newest("operation") if key else ():
            if record.body["key"] == key:
                return record
        return None

    def changed_s(self, pool: str) -> float | None:
        """Unix time at which the pool's last operation ended."""
        found = self.journal.ledger.newest("operation", limit=1, pool=pool, final=True)
        return found[0].at_s if found else None

    async def resume(self) -> None:
        """Go on with what a killed controller left, or a full disk held up."""
        if self._task is not None and not self._task.done():
            return
        if self._task is not None and (error := self._task.exception()) is not None:
            self._task = None
            raise error
        if (record := self.running) is not None:
            if record.pool in self.fleet.pools:  # else its agents are still to be heard
                self._task = asyncio.create_task(self._run(record, is_restart=True))
            return
        for plan in self.journal.ledger.newest("plan", final=False):
            if plan.body["state"] == PlanState.APPLYING:  # killed between the two records
                self._close(Operation.of(self._operation_of(plan)))

    async def settle(self) -> None:
        """Wait for what runs."""
        if self._task is not None:
            await self._task

    def _refuse_if_busy(self) -> None:
        if (running := self.running) is not None:
            at = Operation.of(running)
            raise BusyError(
                f"{running.id} is at work on {running.pool} ({at.progress}): wait for it, or "
                f"placer rollback {running.pool}"
            )

    async def _homes(self, pool: Pool) -> dict[str, str]:
        """Each engine's digest, whose placement is kept to go back to."""
        return {
            engine: self.journal.keep_placement(await self.engines.stands(pool.name, engine))
            for engine in pool.engines
        }

    def _start(
        self, kind: str, pool: Pool, plan: str, goal: str, homes: dict[str, str], key: str,
        reason: str,
    ) -> Record:  # fmt: skip
        now_s = self.journal.clock.now_s()
        operation = Operation(
            self._next_id(), key, pool.name, kind, plan, goal, pool.model.expert_bytes, now_s,
            homes, epoch=max(int(now_s * 1000), self._newest_epoch(pool) + 1),
        )  # fmt: skip
        record = self.journal.write(
            "operation", operation.id, reason, asdict(operation), pool=pool.name, final=False
        )
        self._task = asyncio.create_task(self._run(record))
        return record

    def _next_id(self) -> str:
        newest = self.journal.ledger.newest("operation", limit=1)
        return f"op-{int(newest[0].id.rpartition('-')[2]) + 1 if newest else 1}"

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
            return
        if operation.phase is Phase.SUCCEEDED:
            for record in applied:
                plans.move(record, PlanState.SUPERSEDED, f"{operation.plan_id} is applied")
        record = plans.get(operation.plan_id)
        if record.body["state"] == PlanState.APPLYING:
            plans.move(record, ENDS[operation.phase], reason)

    def _operation_of(self, plan: Record) -> Record:
        found = self.journal.ledger.newest("operation", pool=plan.pool)
        return next(record for record in found if record.body["plan_id"] == plan.id)

    def _last_change(self, pool: str) -> Record | None:
        for record in self.journal.ledger.newest("operation", pool=pool, final=True):
            if Operation.of(record).phase in (Phase.SUCCEEDED, Phase.HALTED):
                return record
        return None

    def _newest_epoch(self, pool: Pool) -> int:
        """What agents have applied or refused last: they only listen to later ones."""
        said = [member.said for member in pool.members.values()]
        return max((max(one.epoch, one.refused_epoch) for one in said), default=0)
