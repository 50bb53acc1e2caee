"""The ledger: what was decided, why, and how far it came, in one SQLite file that survives kill -9.

A record is never changed: its next version is added, by whoever saw the newest one. What was put is
on the disk when ``put`` returns. Its holder writes; others may look with ``sqlite3 -readonly``.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controller.ledger import holder
from controller.ledger import statements as sql
from controller.ledger.claim import Claim
from controller.ledger.file import LedgerFull, connect, telling, transaction
from controller.ledger.holder import Fenced, Holding, InUse, LedgerError
from controller.ledger.looking import look_into
from controller.ledger.records import (
    WRITTEN,
    Conflict,
    Forms,
    LeftOut,
    Record,
    TooOld,
    Unreadable,
    fault,
    read_row,
    row_of,
)
from controller.ledger.unread import Unread

__all__ = [
    "Conflict", "Fenced", "InUse", "Ledger", "LedgerError", "LedgerFull", "LeftOut", "Record",
    "TooOld", "Unreadable",
]  # fmt: skip

LATEST_ONLY = ("snapshot", "ids", "capacity")
EARLIER = 20_000  # versions of a kind that later ones followed, at most, that are kept


class Ledger:
    """Calls are short and may come from any thread. A record that cannot be read is left out of
    what is listed, and named in ``left_out``; who asks for it alone gets ``Unreadable``.

    latest_only: kinds that are written all the time. The newest version of each id is kept alone,
        and they stand in no history.
    forms: of values, by kind; those of other kinds are plain JSON
    """

    def __init__(
        self,
        path: Path | None,
        forms: Forms = MappingProxyType({}),
        latest_only: Collection[str] = LATEST_ONLY,
        reads_only: bool = False,
    ) -> None:
        """In memory without a path. reads_only: whoever writes, also at the same time. Raises InUse
        if another controller has it."""
        if path is not None:
            path = Path(os.path.realpath(path))  # SQLite's files stand beside what links lead to
        self._name = "the ledger in memory" if path is None else str(path)
        self._latest_only = tuple(latest_only)
        self._forms = forms
        self._unread = Unread(self._name)
        self._guard = threading.Lock()
        self._holding: Holding | None = None
        self._claim = None if path is None or reads_only else Claim(path)
        try:
            with telling(self._name):
                if path is not None and reads_only:
                    self._connection = look_into(path)
                else:
                    self._connection = connect(path, self._claim)
        except BaseException:
            self._let_go()
            raise
        if reads_only:
            return
        try:
            with suppress(LedgerFull), self._writing():  # reading goes on without room to write
                pass
        except BaseException:
            self.close()
            raise

    @property
    def id(self) -> str:
        """Made with the file, and its for ever; empty while there was no room for it."""
        return self._holding.id if self._holding is not None else ""

    def beat(self) -> None:
        """Say that its holder is alive: every ``holder.BEAT_S``. Raises Fenced."""
        locked = self._claim is None or self._claim.keep()
        with self._writing() as connection:
            holder.beat(connection, locked)

    def put(self, record: Record[Any]) -> Record[Any]:
        """As it stands in the ledger. Raises Conflict unless its version is the newest + 1."""
        return self.put_all([record])[0]

    def put_all(self, records: Iterable[Record[Any]]) -> tuple[Record[Any], ...]:
        """All of them or none; one may follow another of the same id."""
        rows = [(record, row_of(record, self._forms)) for record in records]
        with self._writing() as connection:
            return tuple(self._insert(connection, record, row) for record, row in rows)

    def get(self, kind: str, id: str) -> Record[Any] | None:
        """The newest version. Raises Unreadable."""
        where = f"number = ({sql.LAST_OF})"
        rows = self._read(f"SELECT {sql.READ} FROM records WHERE {where}", kind, id)
        return self._record(rows[0]) if rows else None

    def version(self, kind: str, id: str) -> int:
        """The newest's number, whether it can be read or not; 0 if there is none."""
        ((last, largest),) = self._read(sql.VERSIONS, kind, id, kind, id)
        return int(largest if last is None else last)

    def versions(self, kind: str, id: str) -> list[Record[Any]]:
        """All that are kept, oldest first."""
        return self._select("kind = ? AND id = ? ORDER BY +number", kind, id)

    def ids(self, kind: str) -> list[str]:
        """All that are there, whether they can be read or not."""
        rows = self._read("SELECT DISTINCT id FROM records WHERE kind = ?", kind)
        return [str(id) for (id,) in rows]

    def left_out(self) -> list[LeftOut]:
        """Things whose newest version is there and could not be read when it was asked for."""
        found = self._unread.all
        if not found:
            return []
        return [found[number] for (number,) in self._read(sql.STILL, json.dumps(list(found)))]

    def leave_out(self, record: Record[Any], error: Exception) -> Unreadable:
        """For whoever needs it and finds that it is not as it should be. Returns what to raise."""
        told = (record.kind, record.id, record.version, record.pool, record.number)
        return self._unread.add(LeftOut(*told, fault(error)))

    def newest(
        self,
        kind: str,
        limit: int | None = None,
        pool: str | None = None,
        final: bool | None = None,
    ) -> list[Record[Any]]:
        """The newest version of each id, last written first; of one pool, or final or open only."""
        newest = "SELECT max(number) FROM records WHERE kind = ? GROUP BY id"  # asks an index alone
        where = f"number IN ({newest}) AND pool = ifnull(?, pool) AND final = ifnull(?, final)"
        return self._select(f"{where} {sql.LAST_FIRST}", kind, pool, final, limit=limit)

    def newest_of_each(
        self, limit: int, pool: str | None = None, but: Collection[str] = ()
    ) -> list[Record[Any]]:
        """The newest version of each id of each kind, last written first; of one pool only, and of
        no ``latest_only`` kind nor of those in ``but``."""
        others = (*self._latest_only, *but)
        spots = ", ".join("?" * len(others))
        newest = f"SELECT max(number) FROM records WHERE kind NOT IN ({spots}) GROUP BY kind, id"
        where = f"number IN ({newest}) AND pool = ifnull(?, pool)"
        return self._select(f"{where} {sql.LAST_FIRST}", *others, pool, limit=limit)

    def history(
        self, limit: int | None = None, pool: str | None = None, before: int | None = None
    ) -> list[Record[Any]]:
        """All versions of all kinds but the ``latest_only`` ones, last written first.

        before: the ``number`` of the last one that was seen, to read on from there
        """
        spots = ", ".join("?" * len(self._latest_only))
        where = f"kind NOT IN ({spots}) AND pool = ifnull(?, pool)"
        values: tuple[Any, ...] = (*self._latest_only, pool)
        if before is not None:
            where, values = f"{where} AND number < ?", (*values, before)
        return self._select(f"{where} {sql.LAST_FIRST}", *values, limit=limit)

    def numbers(self, kinds: Collection[str], since: int) -> tuple[list[int], int]:
        """Of all records of these kinds after that number, ascending; or if that is 0 of those that
        say how all stands: the newest version of each thing, of decisions the newest of each pool.
        Then the number of the last record that was ever put.

        Raises TooOld for a number after which something was forgotten, or that no record has yet.
        """
        ((last,),) = self._read(sql.LAST)
        ((forgotten,),) = self._read(holder.FORGOTTEN)
        if since and not forgotten <= since <= last:
            raise TooOld(f"{since} is too old, or another ledger's: watch again from 0")
        told = json.dumps(list(kinds))
        rows = self._read(sql.SINCE, since, told) if since else self._read(sql.STATE, told, told)
        return [number for (number,) in rows], last

    def of_numbers(self, numbers: Sequence[int]) -> list[Record[Any]]:
        """Those of them that are there, ascending."""
        where = "number IN (SELECT value FROM json_each(?)) ORDER BY number"
        return self._select(where, json.dumps(list(numbers)))

    def blob(self, kind: str, id: str, version: int | None = None) -> bytes | None:
        """Of this version, or of the newest that has one: a plan's file comes with its first."""
        where = "kind = ? AND id = ? AND version = ifnull(?, version) AND blob IS NOT NULL"
        query = f"SELECT blob FROM records WHERE {where} ORDER BY +number DESC LIMIT 1"
        rows = self._read(query, kind, id, version)
        return rows[0][0] if rows else None

    def prune(self, kind: str, keep: int, since_s: float, needed: Collection[str] = ()) -> int:
        """Forget final ids that are older than ``since_s`` or not among the ``keep`` last written,
        but for those ``needed``. Of those that stay, forget versions that others followed: beyond
        ``EARLIER``, and those older than ``since_s``, unless their story goes on; the newest and
        what has a blob stay.

        How many versions went; the file keeps their room for others.
        """
        values: dict[str, Any] = {"kind": kind, "keep": keep, "since_s": since_s}
        values |= {"earlier": EARLIER, "needed": json.dumps(list(needed))}
        values["left_out"] = json.dumps([one.number for one in self.left_out()])
        with self._writing() as connection:
            gone = [n for one in sql.PRUNES for (n,) in connection.execute(one, values)]
            if gone:
                holder.forget(connection, max(gone))
            return len(gone)

    def close(self) -> None:
        if self._holding is not None:
            with suppress(LedgerError), self._writing() as connection:
                holder.end(connection)
        with self._guard, telling(self._name):
            self._connection.close()
        self._let_go()

    def _insert(
        self, connection: sqlite3.Connection, record: Record[Any], row: Sequence[Any]
    ) -> Record[Any]:
        thing = (record.kind, record.id)
        last, largest = connection.execute(sql.VERSIONS, (*thing, *thing)).fetchone()
        actual = largest if last is None else last
        if record.version != actual + 1:
            raise Conflict(record, actual)
        version = largest + 1  # its own, but where a row was damaged
        if record.kind in self._latest_only:
            connection.execute("DELETE FROM records WHERE kind = ? AND id = ?", thing)
        spots = ", ".join("?" * len(row))
        values = (*thing, version, *row[3:])
        inserted = connection.execute(f"INSERT INTO records ({WRITTEN}) VALUES ({spots})", values)
        number = inserted.lastrowid or 0
        return replace(record, version=version, number=number, blob=b"", text=row[5])

    def _select(self, where: str, *values: Any, limit: int | None = None) -> list[Record[Any]]:
        """``limit`` that can be read."""
        query = f"SELECT {sql.READ} FROM records AS r WHERE {where}"
        found: list[Record[Any]] = []
        with self._reading(query, values) as rows:
            for row in rows:
                if len(found) == limit:
                    break
                with suppress(Unreadable):  # it is named in left_out
                    found.append(self._record(row))
        return found

    def _record(self, row: Sequence[Any]) -> Record[Any]:
        told = dict(zip(sql.READ.split(", "), row, strict=True))
        try:
            return read_row(told, self._forms)
        except Exception as error:  # whatever it holds, it keeps no controller from starting
            kind, id, pool = (str(told[name]) for name in ("kind", "id", "pool"))
            where = (told["version"], pool, told["number"])
            raise self._unread.add(LeftOut(kind, id, *where, fault(error))) from error

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._reading(query, values) as rows:
            return rows.fetchall()

    @contextmanager
    def _reading(self, query: str, values: Sequence[Any]) -> Iterator[sqlite3.Cursor]:
        with (
            self._guard,
            telling(self._name),
            closing(self._connection.execute(query, values)) as rows,
        ):
            yield rows

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._guard, telling(self._name):
            if self._holding is None:
                locked = self._claim is None or self._claim.locked
                with transaction(self._connection):
                    holding = holder.hold(self._connection, self._name, locked)
                self._holding = holding
            with transaction(self._connection):
                holder.check(self._connection, self._name, self._holding)
                yield self._connection

    def _let_go(self) -> None:
        if self._claim is not None:
            self._claim.close()
