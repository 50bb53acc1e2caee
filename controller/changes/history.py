"""What the ledger tells of operations that were."""

from collections.abc import Iterator
from contextlib import suppress

from controller.changes.operations import Apply, Operation, Phase
from controller.changes.plans import Kept, PlanState
from controller.changes.targets import targets_of
from controller.fleet.observed import same_experts
from controller.fleet.workers import NAME, FleetError, UnknownError
from controller.ledger.ledger import Record, Unreadable
from controller.ledger.watched import WatchedLedger

FEW = 8  # operations that are read at first, and factor of how many more


class History:
    """Operations of all pools, as they were written down."""

    def __init__(self, ledger: WatchedLedger) -> None:
        self.ledger = ledger
        self._targets: dict[str, frozenset[str]] = {}  # of operations that were begun

    def get(self, id: str) -> Record[Operation]:
        record = self.ledger.records.get("operation", id)
        if record is None:
            raise UnknownError(f"no operation {id[:NAME]!r}: `placer history` lists them")
        return record

    def known(self, key: str) -> Record[Operation] | None:
        """The operation that was begun, or told to go back, with this idempotency key."""
        for record in self.ledger.records.newest("operation") if key else ():
            if key in record.value.keys:
                return record
        return None

    def at_work(self, pool: str, width: int) -> Record[Operation] | None:
        """The operation that changes the pool's engines of this width now, if one does."""
        for record in self.ledger.open("operation", pool):
            if record.value.phase is not Phase.WAITING and record.value.width in (0, width):
                return record
        return None

    def last_change(self, pool: str, width: int = 0) -> Record[Operation] | None:
        """The newest operation that left the pool elsewhere, or its engines of this width."""
        for record in self._ended(pool, width):
            if record.value.phase in (Phase.SUCCEEDED, Phase.HALTED):
                return record
        return None

    def to_undo(self, pool: str) -> Record[Operation]:
        """The last change. Raises FleetError if there is none, Unreadable if it cannot be read."""
        last = self.last_change(pool)
        number = 0 if last is None else last.number
        for one in self.ledger.records.left_out():
            if (one.kind, one.pool) == ("operation", pool) and one.number > number:
                raise Unreadable(
                    f"{one.id} cannot be read, so that it is not known where {pool} stood before: "
                    "propose a plan instead"
                )
        if last is None:
            raise FleetError(f"{pool} was never changed: there is nothing to roll back to")
        return last

    def ends(self) -> set[str]:
        """Digests of the maps that operations lead to, and back to."""
        operations, known = self.ledger.records.newest("operation"), self._targets
        self._targets = {one.id: known[one.id] for one in operations if one.id in known}
        for one in operations:
            if one.value.engines and one.id not in known:
                with suppress(Unreadable):  # then nobody goes back there
                    targets = targets_of(self.ledger.records, one)
                    self._targets[one.id] = frozenset(targets.values())
        return {one.value.goal for one in operations}.union(*self._targets.values())

    def of_plan(self, plan: Record[Kept]) -> Record[Operation] | None:
        """That applied it; None if it cannot be read."""
        for record in self.ledger.records.newest("operation", pool=plan.pool):
            if record.value.change == Apply(plan.id, plan.value.digest):
                return record
        return None

    def last_changes(self, pool: str, width: int = 0) -> tuple[Record[Operation] | None, int]:
        """The last operation of the pool, or of its engines of this width, that has ended, and how
        many in a row failed."""
        last, failed = None, 0
        for record in self._ended(pool, width):
            if record.value.phase == Phase.REFUSED:
                continue
            last = last or record
            if record.value.phase == Phase.SUCCEEDED:
                break
            failed += 1
        return last, failed

    def _ended(self, pool: str, width: int) -> Iterator[Record[Operation]]:
        """The newest first, of which the first mostly say enough: no more are read than that."""
        seen, limit = 0, FEW
        while True:
            found = self.ledger.records.newest("operation", limit, pool, final=True)
            for record in found[seen:]:
                if not width or record.value.width in (0, width):
                    yield record
            if len(found) < limit:
                return
            seen, limit = len(found), limit * FEW

    def plan_of(self, operation: Operation) -> Record[Kept] | None:
        """The newest of the last plans that leads where the operation led."""
        for record in self.ledger.records.newest("plan", limit=20, pool=operation.pool):
            with suppress(Unreadable):
                goal, map_of_it = map(self.ledger.placement, (operation.goal, record.value.digest))
                ended = record.value.state in (PlanState.SUPERSEDED, PlanState.ROLLED_BACK)
                if ended and same_experts(map_of_it, goal):
                    return record
        return None
