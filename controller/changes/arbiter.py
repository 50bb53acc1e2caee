"""Where changes are asked for, by the loop and by operators, and the arbiter: one disruptive action
at a time, over all pools."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from controller.changes import rank_loads
from controller.changes.history import History
from controller.changes.kinds import kinds as kinds_of_changes
from controller.changes.operations import Apply, Change, Operation, Phase, Rollback, Scale
from controller.changes.plans import Kept, Plans, PlanState
from controller.changes.queue import Queue
from controller.changes.runner import Runner
from controller.changes.targets import pack, targets_of
from controller.changes.totals import Totals
from controller.config import Config, told_in_settings
from controller.fleet.observed import observed_placements, refuse_lost, same_experts
from controller.fleet.pools import Group, Pool, kinds
from controller.fleet.workers import FORGOTTEN_S, Fleet, FleetError
from controller.ledger.ledger import Conflict, Record, Unreadable
from controller.ledger.watched import WatchedLedger
from controller.policies.policy import Decision
from controller.ports import Engines
from placer.arrays import FloatArray
from placer.checks import violations
from placer.errors import PlacementError
from placer.placement import Placement
from placer.plan import Plan
from placer.refusal import refusal

log = logging.getLogger("placer.controller")


class BusyError(FleetError):
    """Another operation is at work."""


class Arbiter:
    """Takes proposals in, keeps the plans, and begins one change at a time."""

    def __init__(
        self, config: Config, ledger: WatchedLedger, fleet: Fleet, engines: Engines, runner: Runner
    ) -> None:
        self.config, self.ledger, self.fleet, self.engines = config, ledger, fleet, engines
        self.plans = Plans(ledger)
        self.queue = Queue(ledger, self.plans)
        self.history, self.runner = History(ledger), runner
        self.kinds = kinds_of_changes(self.plans, self.history, self.runner)
        self.totals = Totals()
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Lock()  # between looking whether somebody is at work, and being it

    @property
    def running(self) -> Record[Operation] | None:
        """The operation that was begun and is not at its end yet."""
        found = self.ledger.open("operation")
        return next((one for one in found if one.value.phase is not Phase.WAITING), None)

    async def stands(self, group: Group) -> Placement:
        """The map of an engine that stands where the last change led, or else of the first that
        answers. Raises EngineLostError if none does."""
        there = await observed_placements(self.engines, group)
        last = self.history.last_change(group.pool, group.ranks)
        if last is not None and last.value.phase is Phase.SUCCEEDED:
            with suppress(Unreadable):
                goal = self.ledger.placement(last.value.goal)
                there.sort(key=lambda one: not same_experts(one[1], goal))
        return there[0][1]

    async def drifted(self, group: Group, placement: Placement) -> list[str]:
        """The drift: engines whose ranks hold other experts than they do in ``placement``."""
        there = await observed_placements(self.engines, group)
        return [engine for engine, stands in there if not same_experts(stands, placement)]

    def propose(self, pool: str, plan: Plan, before: str, reason: str) -> Record[Kept]:
        """Keep a plan for approval, for the pool's engines of its width. Raises PlacementError if
        it may not be applied."""
        policy, known = self.config.of(pool), self.fleet.pool(pool)
        if (group := known.group(plan.placement.gpus) or known.group()) is None:
            raise FleetError(f"all engines of {pool} are being resized: wait for that")
        for member in kinds(group.members):
            if reason_not := refusal(plan, member.registration.worker):
                raise PlacementError(reason_not)
        hardware = policy.hardware(group.ranks)
        broken = violations(plan.placement, policy.objective, known.model, hardware)
        if broken:
            raise PlacementError(broken[0])
        return self.plans.propose(group, plan, before, reason)

    def take(
        self,
        group: Group,
        decision: Decision,
        plan: Plan,
        stands: Placement | None,
        load: FloatArray | None,
    ) -> Decision:
        """Keep the plan that a policy decided on, unless an earlier one for this map waits:
        approved, for its turn; or for approval, as long as it is not too old. stands, load: the map
        and [layers, experts] tokens that it was made from"""
        pool, width, before = group.pool, plan.placement.gpus, stands.digest if stands else ""
        window_s = self.config.of(pool).window_s
        waiting = PlanState.PROPOSED, PlanState.APPROVED
        for record in self.plans.in_state(pool, *waiting, width=width):
            approved = record.value.state is PlanState.APPROVED
            fresh = self.ledger.age_s(record) < window_s
            if record.value.before in ("", before) and (approved or fresh):
                what = "its turn" if approved else "approval"
                left_out = record.value.left_out(self.fleet.pool(pool))
                reason = f"{record.id} waits for {what}: {record.reason}{left_out}"
                return replace(decision, outcome="propose", reason=reason)
        if why := self.plans.rejected(group, plan, before, window_s):
            return replace(decision, outcome="hold", reason=f"{plan.reason}: {why}")
        with told_in_settings():
            record = self.propose(pool, plan, before, plan.reason)
        if decision.outcome == "act":
            self.plans.approve(record.id, record.version, "mode is automatic")
        if stands is not None and load is not None and stands.gpus == width:
            rank_loads.keep(self.ledger, record, load, stands, plan.placement)
        return replace(decision, reason=f"{record.id}: {decision.reason}")

    async def begin(self, plan: Record[Kept], key: str, reason: str) -> Record[Operation]:
        """Begin to apply an approved plan; returns its operation."""
        change = Apply(plan.id, plan.value.digest)
        return await self._begin(plan.pool, lambda: change, key, reason)

    async def rollback(self, pool: str, key: str, reason: str) -> Record[Operation]:
        """Have the pool's operation go back, or the pool to where it was before the last one."""
        running = self.running
        if running is not None and running.pool == pool:
            kind = self.kinds[type(running.value.change)]
            kind.abort(running, reason or "an operator wants it back", key)
            return running
        if (waiting := self.queue.of(pool)) is not None:
            return self.queue.withdraw(waiting, reason or "an operator wants it back", key)

        def change() -> Rollback:
            undone = self.history.to_undo(pool)
            goal = next(iter(targets_of(self.ledger.records, undone).values()))
            stand = self.ledger.placement(undone.value.goal).gpus
            resized = stand != self.ledger.placement(goal).gpus
            if resized and self.fleet.pool(pool).group(stand) is None:
                resized = False  # it was halted before any engine had that width
            return Rollback(undone.value.plan_id, goal, stand if resized else 0)

        return await self._begin(pool, change, key, reason)

    async def scale(
        self,
        pool: str,
        sized: tuple[Scale, Placement | None, str],
        key: str,
        reason: str,
        waiting: Record[Operation] | None = None,
    ) -> Record[Operation]:
        """Give the pool's engines another width. sized: as ``sizing.sized`` finds; waiting: what
        becomes of that, if it waited for its turn"""
        change, after, refused = sized
        if after is not None:
            self.ledger.keep_placement(after)
        return await self._begin(pool, lambda: change, key, reason, refused, waiting)

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
            state = plan.value.state
            if state is PlanState.APPLYING:
                if (operation := self.history.of_plan(plan)) is not None:
                    self._close(operation.value)
                else:
                    why = "its operation cannot be read: it is not known how far it came"
                    self.plans.change_state(plan, PlanState.HALTED, why)
            elif state is PlanState.APPLIED:
                last = self.history.last_change(plan.pool, plan.value.width)
                if last is not None and last.number > plan.number:
                    self._close(last.value)

    def placements_in_use(self) -> set[str]:
        """Digests that a plan, an operation or a worker still speaks of."""
        plans = self.ledger.records.newest("plan")
        found = {end for plan in plans for end in (plan.value.digest, plan.value.before)}
        found |= self.history.ends()
        pools = self.fleet.pools.values()
        return found | {one.registration.digest for pool in pools for one in pool.members.values()}

    async def settle(self) -> None:
        """Wait for what runs."""
        if self._task is not None:
            await self._task

    def refuse_if_busy(self) -> None:
        """Raises BusyError, which names the operation that is at work."""
        if (running := self.running) is not None:
            at, pool = running.value.progress, running.pool
            raise BusyError(
                f"{running.id} is at work on {pool} ({at}): wait for it, or placer rollback {pool}"
            )

    async def _rollback_targets(self, group: Group) -> dict[str, str]:
        """Each engine's digest, whose placement is kept to go back to. Engines that are gone are
        left out, and brought to the rest if they come back."""
        seen = [
            engine
            for engine, members in group.engines.items()
            if any(map(self.fleet.is_heard, members))
        ]
        targets = {}
        for engine in seen or group.engines:
            placement = await self.engines.stands(group.pool, engine)
            refuse_lost(engine, placement)
            targets[engine] = self.ledger.keep_placement(placement)
        return targets

    async def _begin(
        self,
        pool_name: str,
        what: Callable[[], Change],
        key: str,
        reason: str,
        refused: str = "",
        waiting: Record[Operation] | None = None,
    ) -> Record[Operation]:
        """Written down together with what belongs to it, or not at all. refused: why it cannot be,
        if that is known"""
        async with self._begun:
            if waiting is not None:
                key = waiting.value.key
            elif (known := self.history.known(key)) is not None:
                return known
            pool, change = self.fleet.pool(pool_name), what()
            kind, size = self.kinds[type(change)], pool.model.expert_bytes
            if why := refused or kind.refusal(pool, change):
                if waiting is not None:
                    return self.queue.withdraw(waiting, why)
                now_s, id = self.ledger.clock.now(), self.ledger.next_id("operation", "op")
                no = Operation(id, key, pool.name, change, size, now_s,
                               phase=Phase.REFUSED, why=why)  # fmt: skip
                return self.ledger.write("operation", id, reason, no, pool=pool.name)
            if frozen := self.config.of(pool.name).frozen:
                raise FleetError(
                    f"{frozen}: set it for {pool.name}, and start the controller again"
                )
            self.refuse_if_busy()
            group = pool.group(kind.width(change))
            width = group.ranks if group else 0
            targets = {} if group is None else await self._rollback_targets(group)
            beside = kind.begin(change, pool, targets, reason)
            now_s = self.ledger.clock.now()
            id = waiting.id if waiting else self.ledger.next_id("operation", "op")
            epoch = max(int(now_s * 1000), self._newest_epoch(pool) + 1)
            operation = Operation(
                id, key, pool.name, change, size, now_s, len(targets), next(iter(targets), ""),
                epoch=epoch, width=width,
            )  # fmt: skip
            first = Record("operation", id, 1, now_s, reason, operation, pool.name, final=False)
            if waiting is not None:
                operation = replace(operation, other_keys=waiting.value.other_keys)
                first = waiting.next(now_s, reason, value=operation)
            first = replace(first, blob=pack(targets))
            record: Record[Operation] = self.ledger.put(first, *beside)
            self._task = asyncio.create_task(self._run(record))
            return record

    async def _run(self, record: Record[Operation], is_restart: bool = False) -> None:
        kind = self.kinds[type(record.value.change)]
        try:
            ended = await kind.run(record, is_restart)
        except Conflict:
            log.exception("placer: %s is run by somebody else, too", record.id)
            raise
        operation = ended.value
        log.info("placer: %s %s %s", operation.id, operation.phase, operation.why)
        self.totals.count(operation)
        kind.close(operation)

    def _close(self, operation: Operation) -> None:
        self.kinds[type(operation.change)].close(operation)

    def _newest_epoch(self, pool: Pool) -> int:
        """What agents have applied or refused last, or were offered: they only listen to later
        ones, also if the wall clock was put back."""
        registrations = [member.registration for member in pool.members.values()]
        told = [max(one.epoch, one.refused_epoch) for one in registrations]
        operations = self.ledger.records.newest("operation", pool=pool.name)
        return max((*told, *(record.value.epoch for record in operations)), default=0)
