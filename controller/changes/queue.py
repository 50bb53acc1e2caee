"""What waits for its turn, over all pools: approved plans, and changes of width. First come, first
served, but for what cannot begin yet."""

from dataclasses import replace
from typing import Any

from controller.changes.operations import Operation, Phase, Scale
from controller.changes.plans import Plans, PlanState
from controller.ledger.ledger import Record
from controller.ledger.watched import WatchedLedger


class Queue:
    """Plans and changes of width that wait, as the ledger has them."""

    def __init__(self, ledger: WatchedLedger, plans: Plans) -> None:
        self.ledger, self.plans = ledger, plans
        self._came: dict[str, int] = {}  # numbers of the operations' first records

    @property
    def waiting(self) -> list[Record[Any]]:
        """Who came first is first, whatever was written down of it since, and whatever wall clocks
        said."""
        plans = (one for one in self.ledger.open("plan") if one.value.state is PlanState.APPROVED)
        operations = self._operations()
        self._came = {one.id: self._came.get(one.id) or self._first(one) for one in operations}
        found = [*plans, *operations]
        return sorted(found, key=lambda one: self._came.get(one.id, one.number))

    def place(self, id: str) -> int:
        """1 is next; 0 for what does not wait."""
        ids = [record.id for record in self.waiting]
        return ids.index(id) + 1 if id in ids else 0

    def of(self, pool: str) -> Record[Operation] | None:
        """The change of width that waits for its turn in this pool."""
        return next((one for one in self._operations() if one.pool == pool), None)

    def put(self, pool: str, change: Scale, key: str, reason: str) -> Record[Operation]:
        """Have it wait, in the place of the one that did. The same again is known by its key,
        too."""
        known = self.of(pool)
        if known is not None and known.value.change == change:
            if key in ("", *known.value.keys):
                return known
            keys = known.value.other_keys
            again = replace(known.value, key=key, other_keys=(known.value.key, *keys))
            return self.ledger.follow(known, reason, value=again, final=False)
        id, now_s = self.ledger.next_id("operation", "op"), self.ledger.clock.now()
        if known is not None:
            self.withdraw(known, f"{id} takes its place")
        new = Operation(id, key, pool, change, 0, now_s, phase=Phase.WAITING)
        return self.ledger.write("operation", id, reason, new, pool=pool, final=False)

    def withdraw(self, record: Record[Operation], why: str, key: str = "") -> Record[Operation]:
        """It never begins. key: of whoever wants that"""
        ended = replace(record.value, phase=Phase.REFUSED, why=why, back_key=key)
        return self.ledger.follow(record, why, value=ended, final=True)

    def _operations(self) -> list[Record[Operation]]:
        found = self.ledger.open("operation")
        return [one for one in found if one.value.phase is Phase.WAITING]

    def _first(self, record: Record[Operation]) -> int:
        return self.ledger.records.versions("operation", record.id)[0].number
