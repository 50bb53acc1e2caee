"""Where changes are asked for, by the loop and by operators, and the arbiter: one disruptive action
at a time, over all pools."""

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import asdict

from controller.changes.history import History
from controller.changes.operations import Operation, Phase
from controller.changes.plans import Plans, PlanState
from controller.changes.runner import Runner
from controller.config import Config
from controller.fleet.observed import observed_placements, refuse_lost, same_experts
from controller.fleet.workers import (
    FORGOTTEN_S,
    Fleet,
    FleetError,
    Pool,
    UnknownError,
    kinds,
)
from controller.ledger.ledger import Conflict, Record, Unreadable
from controller.ledger.watched import WatchedLedger
from controller.ports import Engines
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


class Arbiter:
    """Takes proposals in, keeps the plans, and begins one change at a time."""

    def __init__(
        self, config: Config, ledger: WatchedLedger, fleet: Fleet, engines: Engines
    ) -> None:
        self.config, self.ledger, self.fleet, self.engines = config, ledger, fleet, engines
        self.plans = Plans(ledger)
        self.history, self.runner = History(ledger), Runner(ledger, engines, config)
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
        return next(iter(self.ledger.open("operation")), None)

    async def stands(self, pool: Pool) -> Placement:
        """The map of an engine that stands where the last change led, or else of the first that
        answers. Raises EngineLostError if none does."""
        there = await observed_placements(self.engines, pool)
        last = self.history.last_change(pool.name)
        if last is not None and Operation.of(last).phase is Phase.SUCCEEDED:
            with suppress(Unreadable):
                goal = self.ledger.placement(last.body["goal"])
                there.sort(key=lambda one: not same_experts(one[1], goal))
        return there[0][1]

    async def drifted(self, pool: Pool, placement: Placement) -> list[str]:
        """The drift: engines whose ranks hold other experts than they do in ``placement``."""
        there = await observed_placements(self.engines, pool)
        return [engine for engine, stands in there if not same_experts(stands, placement)]

    def propose(self, pool: str, plan: Plan, before: str, reason: str) -> Record:
        """Keep a plan for approval. Raises PlacementError if it may not be applied."""
        policy, known = self.config.of(pool), self.fleet.pool(pool)
        for member in kinds(known.members.values()):
            if reason_not := refusal(plan, member.registration.worker):
                raise PlacementError(reason_not)
        hardware = policy.hardware(known.ranks)
        broken = violations(plan.placement, policy.objective, known.model, hardware)
        if broken:
            raise PlacementError(broken[0])
        return self.plans.propose(pool, plan, before, reason)

    async def begin(self, plan: Record, key: str, reason: str) -> Record:
        """Begin to apply an approved plan; returns its operation."""
        async with self._begun:
            if (known := self.history.known(key)) is not None:
                return known
            self.refuse_if_busy()
            pool = self.fleet.pool(plan.pool)
            targets = await self._rollback_targets(pool)
            before, goal = plan.body["before"], plan.body["digest"]
            why = ""
            if before and before not in targets.values():
                why = f"{plan.id} starts from another map than the pool's now: propose again"
            try:
                self.ledger.placement(goal)
            except Unreadable as error:
                why = f"{plan.id} cannot be applied: {error}"
            if why:
                self.plans.change_state(plan, PlanState.SUPERSEDED, why)
                raise FleetError(why)
            applying = self.plans.next_record(plan, PlanState.APPLYING, reason)
            return self._start("apply", pool, plan.id, goal, targets, key, reason, applying)

    async def rollback(self, pool_name: str, key: str, reason: str) -> Record:
        """Have the pool's operation go back, or the pool to where it was before the last one."""
        running = self.running
        if running is not None and running.pool == pool_name:
            self.runner.abort(running, reason or "an operator wants it back", key)
            return running
        async with self._begun:
            if (known := self.history.known(key)) is not None:
                return known
            self.refuse_if_busy()
            pool = self.fleet.pool(pool_name)
            change = self.history.to_undo(pool_name)
            goal = next(iter(change.rollback_targets.values()))
            self.ledger.placement(goal)
            targets = await self._rollback_targets(pool)
            return self._start("rollback", pool, change.plan_id, goal, targets, key, reason)

    def scale(self, pool_name: str, ranks: int, key: str, reason: str) -> Record:
        """Write down that this cannot be done yet."""
        pool = self.fleet.pool(pool_name)
        why = (
            f"{pool_name} stays at {pool.ranks} ranks: its engines cannot change their width to "
            f"{ranks} while they serve"
        )
        operation = Operation(
            self._next_id(), key, pool_name, "scale", "", "", pool.model.expert_bytes,
            self.ledger.clock.now(), phase=Phase.REFUSED, why=why,
        )  # fmt: skip
        return self.ledger.write(
            "operation", operation.id, reason, asdict(operation), pool=pool_name
        )

    async def resume(self) -> None:
        """Go on with what a killed controller left, or a full disk held up."""
        if self._task is not None and not self._task.done():
            return
        if self._task is not None and (error := self._task.exception()) is not None:
            self._task = None
            raise error
        if (record := self.running) is not None:
            silent_s = self.ledger.age_s(record)
            # Its agents may still be to register; or they are gone, and others wait for its end.
            if record.pool in self.fleet.pools or silent_s > FORGOTTEN_S:
                self._task = asyncio.create_task(self._run(record, is_restart=True))
            return
        for plan in self.ledger.open("plan"):  # killed before it was told
            if plan.body["state"] == PlanState.APPLYING:
                if (operation := self.history.of_plan(plan)) is not None:
                    self._close(Operation.of(operation))
                else:
                    why = "its operation cannot be read: it is not known how far it came"
                    self.plans.change_state(plan, PlanState.HALTED, why)
            elif plan.body["state"] == PlanState.APPLIED:
                last = self.history.last_change(plan.pool)
                if last and last.body["kind"] == "rollback" and last.number > plan.number:
                    self._close(Operation.of(last))

    def placements_in_use(self) -> set[str]:
        """Digests that a plan, an operation or a worker still speaks of."""
        records = self.ledger.records
        plans, operations = records.newest("plan"), records.newest("operation")
        found = {record.body[end] for record in plans for end in ("digest", "before")}
        for operation in map(Operation.of, operations):
            found |= {operation.goal, *operation.rollback_targets.values()}
        pools = self.fleet.pools.values()
        return found | {one.registration.digest for pool in pools for one in pool.members.values()}

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

    async def _rollback_targets(self, pool: Pool) -> dict[str, str]:
        """Each engine's digest, whose placement is kept to go back to. Engines that are gone are
        left out, and brought to the rest if they come back."""
        seen = [
            engine
            for engine, members in pool.engines.items()
            if any(map(self.fleet.is_heard, members))
        ]
        targets = {}
        for engine in seen or pool.engines:
            placement = await self.engines.stands(pool.name, engine)
            refuse_lost(engine, placement)
            targets[engine] = self.ledger.keep_placement(placement)
        return targets

    def _start(
        self, kind: str, pool: Pool, plan: str, goal: str, targets: dict[str, str], key: str,
        reason: str, *beside: Record,
    ) -> Record:  # fmt: skip
        """Written down together with what is ``beside``, or not at all."""
        now_s = self.ledger.clock.now()
        operation = Operation(
            self._next_id(), key, pool.name, kind, plan, goal, pool.model.expert_bytes, now_s,
            targets, epoch=max(int(now_s * 1000), self._newest_epoch(pool) + 1),
        )  # fmt: skip
        body = asdict(operation)
        first = Record("operation", operation.id, 1, now_s, reason, body, pool.name, final=False)
        record = self.ledger.put(first, *beside)
        self._task = asyncio.create_task(self._run(record))
        return record

    def _next_id(self) -> str:
        return self.ledger.next_id("operation", "op")

    async def _run(self, record: Record, is_restart: bool = False) -> None:
        try:
            ended = await self.runner.run(record, is_restart)
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
                    plans.change_state(record, PlanState.ROLLED_BACK, reason)
                if (again := self.history.plan_of(operation)) is not None:
                    plans.change_state(again, PlanState.APPLIED, f"{operation.id} went back to it")
            return
        if operation.phase is Phase.SUCCEEDED:
            for record in applied:
                plans.change_state(record, PlanState.SUPERSEDED, f"{operation.plan_id} is applied")
        with suppress(Unreadable, UnknownError):  # then nobody is to be told
            record = plans.get(operation.plan_id)
            if record.body["state"] == PlanState.APPLYING:
                plans.change_state(record, ENDS[operation.phase], reason)

    def _newest_epoch(self, pool: Pool) -> int:
        """What agents have applied or refused last, or were offered: they only listen to later
        ones, also if the wall clock was put back."""
        registrations = [member.registration for member in pool.members.values()]
        told = [max(one.epoch, one.refused_epoch) for one in registrations]
        operations = map(Operation.of, self.ledger.records.newest("operation", pool=pool.name))
        return max((*told, *(one.epoch for one in operations)), default=0)
