"""The kinds of changes: how each begins, runs, is told to go back, and closes."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from controller.changes.history import History
from controller.changes.operations import Apply, Change, Operation, Phase, Rollback, Scale
from controller.changes.plans import Plans, PlanState
from controller.changes.runner import Runner
from controller.fleet.pools import Pool
from controller.fleet.workers import FleetError, UnknownError
from controller.ledger.ledger import Record, Unreadable

ENDS = {
    Phase.SUCCEEDED: PlanState.APPLIED,
    Phase.ROLLED_BACK: PlanState.ROLLED_BACK,
    Phase.HALTED: PlanState.HALTED,
}


class Kind(Protocol):
    """What the arbiter knows of a kind of change."""

    def refusal(self, pool: Pool, change: Any) -> str:
        """Why this can never be done, which is written down; empty if it can."""

    def width(self, change: Any) -> int:
        """Ranks of the engines that it is for; 0 for those that most have."""

    def begin(
        self, change: Any, pool: Pool, targets: Mapping[str, str], reason: str
    ) -> list[Record[Any]]:
        """What is written down together with its operation. Raises PlacerError if it may not begin.
        targets: digests of where each of these engines stands now; empty if there is none"""

    async def run(self, record: Record[Operation], is_restart: bool) -> Record[Operation]:
        """To its end."""

    def abort(self, record: Record[Operation], reason: str, key: str) -> None:
        """Have it go back, as soon as it can."""

    def close(self, operation: Operation) -> None:
        """Tell the plans how it ended; once more is no harm."""


class _Migrating:
    """Engine after engine goes to another placement, and can come back."""

    def __init__(self, plans: Plans, history: History, runner: Runner) -> None:
        self.plans, self.history, self.runner = plans, history, runner

    def refusal(self, pool: Pool, change: Any) -> str:
        return ""

    async def run(self, record: Record[Operation], is_restart: bool) -> Record[Operation]:
        return await self.runner.run(record, is_restart)

    def abort(self, record: Record[Operation], reason: str, key: str) -> None:
        self.runner.abort(record, reason, key)


class Applying(_Migrating):
    """Brings engines to an approved plan's placement."""

    def width(self, change: Apply) -> int:
        if kept := self.plans.get(change.plan_id).value.width:
            return kept
        with suppress(Unreadable):
            return self.plans.ledger.placement(change.goal).gpus
        return 0

    def begin(
        self, change: Apply, pool: Pool, targets: Mapping[str, str], reason: str
    ) -> list[Record[Any]]:
        plan, why = self.plans.get(change.plan_id), ""
        left_out = plan.value.left_out(pool)
        if plan.value.state is not PlanState.APPROVED:
            raise FleetError(f"{plan.id} is {plan.value.state}: only an approved plan can begin")
        if plan.value.before and plan.value.before not in targets.values():
            why = f"{plan.id} starts from another map than the pool's now: propose again"
        if not targets:
            what = f"{plan.id} is for engines of {plan.value.width} ranks"
            why = f"{what}, and {pool.name} has none now{left_out}: propose again"
        try:
            self.plans.ledger.placement(change.goal)
        except Unreadable as error:
            why = f"{plan.id} cannot be applied: {error}"
        if why:
            self.plans.change_state(plan, PlanState.SUPERSEDED, why)
            raise FleetError(why)
        return [self.plans.next_record(plan, PlanState.APPLYING, f"{reason}{left_out}")]

    def close(self, operation: Operation) -> None:
        plans, width = self.plans, operation.width
        if operation.phase is Phase.SUCCEEDED:
            for record in plans.in_state(operation.pool, PlanState.APPLIED, width=width):
                if record.id != operation.plan_id:
                    why = f"{operation.plan_id} is applied"
                    plans.change_state(record, PlanState.SUPERSEDED, why)
        with suppress(Unreadable, UnknownError):  # then nobody is to be told
            record = plans.get(operation.plan_id)
            if record.value.state is PlanState.APPLYING:
                plans.change_state(record, ENDS[operation.phase], operation.outcome)


class RollingBack(_Migrating):
    """To where the pool was before its last change."""

    def width(self, change: Rollback) -> int:
        return change.ranks or self.plans.ledger.placement(change.goal).gpus

    def begin(
        self, change: Rollback, pool: Pool, targets: Mapping[str, str], reason: str
    ) -> list[Record[Any]]:
        if not targets:
            raise FleetError(
                f"{pool.name} has no engine of {self.width(change)} ranks now, as that change was "
                "for: propose a plan instead"
            )
        return []

    def close(self, operation: Operation) -> None:
        if operation.phase is not Phase.SUCCEEDED:
            return
        states, width = (PlanState.APPLIED,), operation.width
        for record in self.plans.in_state(operation.pool, *states, width=width):
            self.plans.change_state(record, PlanState.ROLLED_BACK, operation.outcome)
        if (again := self.history.plan_of(operation)) is not None:
            self.plans.change_state(again, PlanState.APPLIED, f"{operation.id} went back to it")


class Scaling(_Migrating):
    """To another width, engine after engine, while they serve."""

    def refusal(self, pool: Pool, change: Scale) -> str:
        group = pool.group(change.before)
        for name, members in group.engines.items() if group else ():
            if not all(member.registration.worker.can_resize for member in members):
                return (
                    f"{pool.name} stays at {change.before} ranks: {name} cannot change its width "
                    "while it serves: start engines of that width instead"
                )
        return ""

    def width(self, change: Scale) -> int:
        return change.before

    def begin(
        self, change: Scale, pool: Pool, targets: Mapping[str, str], reason: str
    ) -> list[Record[Any]]:
        if not targets:
            raise FleetError(f"{pool.name} has no engine of {change.before} ranks now: ask again")
        return []

    def close(self, operation: Operation) -> None:
        """Plans for the width before are of no use."""
        if operation.phase is not Phase.SUCCEEDED:
            return
        states = PlanState.PROPOSED, PlanState.APPROVED, PlanState.APPLIED
        for record in self.plans.in_state(operation.pool, *states, width=operation.width):
            self.plans.change_state(record, PlanState.SUPERSEDED, operation.outcome)


def kinds(plans: Plans, history: History, runner: Runner) -> dict[type[Change], Kind]:
    """By the change."""
    parts = plans, history, runner
    return {Apply: Applying(*parts), Rollback: RollingBack(*parts), Scale: Scaling(*parts)}
