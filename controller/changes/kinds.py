"""The kinds of changes: how each begins, runs, is told to go back, and closes."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from controller.changes.history import History
from controller.changes.operations import Apply, Change, Operation, Phase, Rollback, Scale
from controller.changes.plans import Plans, PlanState
from controller.changes.runner import Runner
from controller.fleet.workers import FleetError, Pool, UnknownError
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

    def begin(self, change: Any, targets: Mapping[str, str], reason: str) -> list[Record[Any]]:
        """What is written down together with its operation. Raises PlacerError if it may not begin.
        targets: digests of where each engine stands now"""

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
    """Of an approved plan."""

    def begin(self, change: Apply, targets: Mapping[str, str], reason: str) -> list[Record[Any]]:
        plan, why = self.plans.get(change.plan_id), ""
        if plan.value.state is not PlanState.APPROVED:
            raise FleetError(f"{plan.id} is {plan.value.state}: only an approved plan can begin")
        if plan.value.before and plan.value.before not in targets.values():
            why = f"{plan.id} starts from another map than the pool's now: propose again"
        try:
            self.plans.ledger.placement(change.goal)
        except Unreadable as error:
            why = f"{plan.id} cannot be applied: {error}"
        if why:
            self.plans.change_state(plan, PlanState.SUPERSEDED, why)
            raise FleetError(why)
        return [self.plans.next_record(plan, PlanState.APPLYING, reason)]

    def close(self, operation: Operation) -> None:
        plans, reason = self.plans, operation.why or f"{operation.id} {operation.phase}"
        if operation.phase is Phase.SUCCEEDED:
            for record in plans.in_state(operation.pool, PlanState.APPLIED):
                if record.id != operation.plan_id:
                    why = f"{operation.plan_id} is applied"
                    plans.change_state(record, PlanState.SUPERSEDED, why)
        with suppress(Unreadable, UnknownError):  # then nobody is to be told
            record = plans.get(operation.plan_id)
            if record.value.state is PlanState.APPLYING:
                plans.change_state(record, ENDS[operation.phase], reason)


class RollingBack(_Migrating):
    """To where the pool was before its last change."""

    def begin(self, change: Rollback, targets: Mapping[str, str], reason: str) -> list[Record[Any]]:
        self.plans.ledger.placement(change.goal)
        return []

    def close(self, operation: Operation) -> None:
        if operation.phase is not Phase.SUCCEEDED:
            return
        reason = operation.why or f"{operation.id} {operation.phase}"
        for record in self.plans.in_state(operation.pool, PlanState.APPLIED):
            self.plans.change_state(record, PlanState.ROLLED_BACK, reason)
        if (again := self.history.plan_of(operation)) is not None:
            self.plans.change_state(again, PlanState.APPLIED, f"{operation.id} went back to it")


class Scaling:
    """To another width, which no engine can do yet: it is refused, and never begins."""

    def refusal(self, pool: Pool, change: Scale) -> str:
        return (
            f"{pool.name} stays at {pool.ranks} ranks: its engines cannot change their width to "
            f"{change.ranks} while they serve"
        )

    def begin(self, change: Any, targets: Mapping[str, str], reason: str) -> list[Record[Any]]:
        raise FleetError("engines cannot change their width while they serve: start others")

    async def run(self, record: Record[Operation], is_restart: bool) -> Record[Operation]:
        return record

    def abort(self, record: Record[Operation], reason: str, key: str) -> None:
        pass

    def close(self, operation: Operation) -> None:
        pass


def kinds(plans: Plans, history: History, runner: Runner) -> dict[type[Change], Kind]:
    """By the change."""
    parts = plans, history, runner
    return {Apply: Applying(*parts), Rollback: RollingBack(*parts), Scale: Scaling()}
