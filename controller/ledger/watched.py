"""The ledger with a clock and an audience: what is written down is what watchers see."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from controller.ledger.ages import Ages
from controller.ledger.holder import BEAT_S
from controller.ledger.ledger import Fenced, InUse, Ledger, LedgerError, Record, Unreadable
from controller.ledger.records import Forms, form_of
from placer.clock import Clock
from placer.errors import PlacementError
from placer.placement import Placement

OPEN = ("plan", "operation")  # kinds that are asked for by all who look
log = logging.getLogger("placer.controller")
PAGE = 200  # records that are read between two others' calls
BACKLOG = 1000  # records that a watcher may be behind; then it is told that it missed some


@dataclass(frozen=True, slots=True)
class Ids:
    """last: the largest number that was given to a thing of this kind"""

    last: int


@dataclass(frozen=True, slots=True)
class Map:
    """The sizes of a placement whose table is its record's blob. shape: layers and slots"""

    shape: tuple[int, int]
    experts: int
    gpus: int
    nodes: int


FORMS: Forms = {"ids": form_of(Ids), "placement": form_of(Map)}


class WatchedLedger:
    """A ledger's records, how old they are, and who on one event loop wants to know of new ones."""

    def __init__(self, records: Ledger, clock: Clock) -> None:
        self.records, self.clock, self._ages = records, clock, Ages(clock)
        self._watchers: set[asyncio.Queue[Record[Any] | None]] = set()
        # What has not ended yet, by kind, pool and id. To find it the ledger reads all that has:
        # once, when it is asked for first.
        self._open: dict[str, dict[str, dict[str, Record[Any]]]] = {}
        self._numbered: set[str] = set()  # kinds whose ids were looked through

    def write(
        self,
        kind: str,
        id: str,
        reason: str,
        value: Any,
        **more: Any,
    ) -> Record[Any]:
        """The first version. ``more``: pool, final, blob. Raises LedgerError."""
        return self.put(Record(kind, id, 1, self.clock.now(), reason, value, **more))

    def follow(self, record: Record[Any], reason: str, **changes: Any) -> Record[Any]:
        """The version after ``record``. Raises Conflict if there is one already."""
        return self.put(record.next(self.clock.now(), reason, **changes))

    def put(self, *records: Record[Any]) -> Record[Any]:
        """All or none; returns the first."""
        written = self.records.put_all(records)
        for record in written:
            self._ages.note(record)
            if record.kind in self._open:  # or it is found in the ledger, later
                self._note(record)
            for queue in self._watchers:
                if queue.qsize() < BACKLOG:
                    queue.put_nowait(record)
                elif queue.qsize() == BACKLOG:
                    queue.put_nowait(None)
        return written[0]

    def age_s(self, record: Record[Any]) -> float:
        """Since it was written."""
        return self._ages.of(record)

    def prune(self, kind: str, keep: int, retention_s: float, needed: Collection[str] = ()) -> None:
        """As ``Ledger.prune``. What a wall clock says that was put on ages no record."""
        since_s = min(self.clock.now(), self._ages.now()) - retention_s
        self.records.prune(kind, keep, since_s, needed)

    async def hold(self) -> None:
        """Say again and again that its holder is alive. Raises Fenced once another one is."""
        while True:
            await self.clock.sleep(BEAT_S)
            try:
                self.records.beat()
            except (Fenced, InUse):
                raise
            except (
                LedgerError
            ) as error:  # whoever writes something meanwhile makes a condition of it
                log.warning("placer: %s", error)

    def open(self, kind: str, pool: str | None = None) -> list[Record[Any]]:
        """What has not ended yet, last written first; of one pool only. kind: of OPEN"""
        if kind not in self._open:
            found = self.records.newest(kind, final=False)
            self._open[kind] = {}
            for record in found:
                self._note(record)
        pools = self._open[kind]
        those = pools.values() if pool is None else [pools.get(pool, {})]
        listed = [record for records in those for record in records.values()]
        return sorted(listed, key=lambda record: record.number, reverse=True)

    def next_id(self, kind: str, prefix: str) -> str:
        """``prefix-1``, ``prefix-2``, ...: each once, also when all that had one are forgotten."""
        given = self.records.version("ids", kind)
        record = None
        with suppress(Unreadable):
            record = self.records.get("ids", kind)
        if record is not None and kind in self._numbered:
            last = record.value.last
        else:  # a ledger that was without this count, or in which it cannot be read
            told = given if record is None else record.value.last
            last = max(told, *(_number(id, prefix) for id in self.records.ids(kind)), 0)
        last += 1
        now_s = self.clock.now()
        self.records.put(Record("ids", kind, given + 1, now_s, "", Ids(last)))
        self._numbered.add(kind)
        return f"{prefix}-{last}"

    async def watch(
        self, cursor: int | None = None, kinds: Collection[str] = ()
    ) -> AsyncIterator[Record[Any] | int]:
        """What is written from now on. With a cursor first what was written of these kinds after
        the record of that number, or if it is 0 how they stand, as ``Ledger.numbers`` says; then,
        that this was all, a number to go on from.

        Raises LedgerError for a watcher that is too slow, TooOld for a cursor that is none.
        """
        queue: asyncio.Queue[Record[Any] | None] = asyncio.Queue()
        self._watchers.add(queue)
        last = 0
        try:
            if cursor is not None:
                numbers, last = self.records.numbers(kinds, cursor)
                for at in range(0, len(numbers), PAGE):
                    for found in self.records.of_numbers(numbers[at : at + PAGE]):
                        yield found
                    await self.clock.sleep(0)
                yield last
            while (record := await queue.get()) is not None:
                if record.number > last:
                    yield record
        finally:
            self._watchers.discard(queue)
        raise LedgerError(f"{BACKLOG} changes were not read in time: watch again, or less")

    def _note(self, record: Record[Any]) -> None:
        pools = self._open[record.kind]
        records = pools.setdefault(record.pool, {})
        records.pop(record.id, None)
        if not record.final:
            records[record.id] = record
        elif not records:
            del pools[record.pool]

    def keep_placement(self, placement: Placement) -> str:
        """Its digest, under which it is kept."""
        digest = placement.digest
        try:
            self.placement(digest)
        except Unreadable:  # or not there
            table = placement.physical_to_logical
            layers, slots = table.shape
            kept = Map((layers, slots), placement.experts, placement.gpus, placement.nodes)
            version, now_s = self.records.version("placement", digest) + 1, self.clock.now()
            told = (now_s, placement.shape, kept)
            self.put(Record("placement", digest, version, *told, blob=table.tobytes()))
        return digest

    def placement(self, digest: str) -> Placement:
        """Raises Unreadable if it is not there as it was kept."""
        record = self.records.get("placement", digest)
        if record is None:
            raise Unreadable(f"the ledger has no placement {digest:.19}...: plan again")
        blob, kept = self.records.blob("placement", digest), record.value
        try:
            table = np.frombuffer(blob or b"", dtype=np.int32).reshape(kept.shape)
            found = Placement(table, kept.experts, kept.gpus, kept.nodes)
            if found.digest != digest:
                raise ValueError("is another map than it was")
        except (ValueError, PlacementError) as error:
            raise self.records.leave_out(record, error) from error
        return found


def _number(id: str, prefix: str) -> int:
    found = re.fullmatch(rf"{prefix}-([0-9]{{1,15}})", id)
    return int(found[1]) if found else 0
