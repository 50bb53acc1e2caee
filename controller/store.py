"""The ledger: what was decided, why, and how far it came, in one SQLite file that survives kill -9.

A record is never changed: its next version is added, by whoever saw the newest one. What was put is
on the disk when ``put`` returns. One process writes; others may look with ``sqlite3 -readonly``.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controller.ledger_file import (
    BROKEN,
    Claim,
    LedgerError,
    LedgerFull,
    connect,
    telling,
    transaction,
)

__all__ = ["Conflict", "Ledger", "LedgerError", "LedgerFull", "Record"]

_READ = "kind, id, version, at_s, reason, body, pool, final, number"
_WRITTEN = "kind, id, version, at_s, reason, body, pool, final, blob"
_NEWEST = "version = (SELECT max(version) FROM records WHERE kind = r.kind AND id = r.id)"
_LAST_FIRST = "ORDER BY number DESC LIMIT ifnull(?, -1)"
_PRUNE = f"""
DELETE FROM records WHERE kind = :kind AND id IN (
    SELECT id FROM (
        SELECT id, at_s, final, row_number() OVER (ORDER BY number DESC) AS place
        FROM records AS r WHERE kind = :kind AND {_NEWEST})
    WHERE final AND (place > :keep OR at_s < :since_s)
        AND id NOT IN (SELECT value FROM json_each(:needed)))
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One version of one thing. Versions count from 1; what is put is the newest + 1.

    at_s: unix seconds, by the clock of whoever put it
    body: JSON
    pool: which it belongs to, "" if to none
    final: whether its story has ended; what is open is never pruned
    number: its place in the ledger, over all kinds; 0 until it is put
    blob: what is too large for the body; empty in what is read, ask ``Ledger.blob``
    """

    kind: str
    id: str
    version: int
    at_s: float
    reason: str
    body: Mapping[str, Any]
    pool: str = ""
    final: bool = True
    number: int = field(default=0, compare=False)
    blob: bytes = field(default=b"", compare=False, repr=False)

    def next(self, at_s: float, reason: str, **changes: Any) -> "Record":
        """The version after this one, still to be put; ``changes`` are of other fields."""
        new = {"version": self.version + 1, "number": 0, "blob": b"", **changes}
        return replace(self, at_s=at_s, reason=reason, **new)


class Conflict(LedgerError):  # noqa: N818
    """Somebody else was first. actual: the newest version, 0 if there is none"""

    def __init__(self, record: Record, actual: int) -> None:
        self.record, self.expected, self.actual = record, record.version - 1, actual
        super().__init__(
            f"{record.id} is at version {actual} and not {self.expected}"
            ": somebody was first, read it again"
        )


class Ledger:
    """Calls are short and may come from any thread.

    latest_only: kinds that are written all the time. The newest version of each id is kept alone,
        and they stand in no history.
    """

    def __init__(self, path: Path | None, latest_only: Collection[str] = ("snapshot",)) -> None:
        """In memory without a path."""
        if path is not None:
            path = Path(os.path.realpath(path))  # SQLite's files stand beside what links lead to
        self._name = "the ledger in memory" if path is None else str(path)
        self._latest_only = tuple(latest_only)
        self._guard = threading.Lock()
        self._claim = None if path is None else Claim(path)
        try:
            with telling(self._name):
                self._connection = connect(path, self._claim)
        except BaseException:
            self._let_go()
            raise

    def put(self, record: Record) -> Record:
        """As it stands in the ledger. Raises Conflict unless its version is the newest + 1."""
        return self.put_all([record])[0]

    def put_all(self, records: Iterable[Record]) -> tuple[Record, ...]:
        """All of them or none; one may follow another of the same id."""
        rows = [(record, _row(record)) for record in records]
        with self._writing() as connection:
            return tuple(self._insert(connection, record, row) for record, row in rows)

    def get(self, kind: str, id: str) -> Record | None:
        """The newest version."""
        found = self._select("kind = ? AND id = ? ORDER BY version DESC LIMIT 1", kind, id)
        return found[0] if found else None

    def versions(self, kind: str, id: str) -> list[Record]:
        """All that are kept, oldest first."""
        return self._select("kind = ? AND id = ? ORDER BY version", kind, id)

    def newest(
        self,
        kind: str,
        limit: int | None = None,
        pool: str | None = None,
        final: bool | None = None,
    ) -> list[Record]:
        """The newest version of each id, last written first; of one pool, or final or open only."""
        where = f"kind = ? AND {_NEWEST} AND pool = ifnull(?, pool) AND final = ifnull(?, final)"
        return self._select(f"{where} {_LAST_FIRST}", kind, pool, final, limit)

    def history(
        self, limit: int | None = None, pool: str | None = None, before: int | None = None
    ) -> list[Record]:
        """All versions of all kinds but the ``latest_only`` ones, last written first.

        before: the ``number`` of the last one that was seen, to read on from there
        """
        spots = ", ".join("?" * len(self._latest_only))
        where = f"kind NOT IN ({spots}) AND pool = ifnull(?, pool)"
        if before is None:
            return self._select(f"{where} {_LAST_FIRST}", *self._latest_only, pool, limit)
        where += " AND number < ?"
        return self._select(f"{where} {_LAST_FIRST}", *self._latest_only, pool, before, limit)

    def blob(self, kind: str, id: str, version: int | None = None) -> bytes | None:
        """Of this version, or of the newest that has one: a plan's file comes with its first."""
        where = "kind = ? AND id = ? AND version = ifnull(?, version) AND blob IS NOT NULL"
        query = f"SELECT blob FROM records WHERE {where} ORDER BY version DESC LIMIT 1"
        rows = self._read(query, kind, id, version)
        return rows[0][0] if rows else None

    def prune(self, kind: str, keep: int, since_s: float, needed: Collection[str] = ()) -> int:
        """Forget final ids that are older than ``since_s`` or not among the ``keep`` last written,
        but for those ``needed``.

        How many versions went; the file keeps their room for others.
        """
        with self._writing() as connection:
            ids = json.dumps(list(needed))
            values = {"kind": kind, "keep": keep, "since_s": since_s, "needed": ids}
            return connection.execute(_PRUNE, values).rowcount

    def close(self) -> None:
        with self._guard, telling(self._name):
            self._connection.close()
        self._let_go()

    def _insert(self, connection: sqlite3.Connection, record: Record, row: Sequence[Any]) -> Record:
        thing = (record.kind, record.id)
        newest = "SELECT ifnull(max(version), 0) FROM records WHERE kind = ? AND id = ?"
        (actual,) = connection.execute(newest, thing).fetchone()
        if record.version != actual + 1:
            raise Conflict(record, actual)
        if record.kind in self._latest_only:
            connection.execute("DELETE FROM records WHERE kind = ? AND id = ?", thing)
        spots = ", ".join("?" * len(row))
        inserted = connection.execute(f"INSERT INTO records ({_WRITTEN}) VALUES ({spots})", row)
        number, body = inserted.lastrowid or 0, json.loads(row[5])  # as it will be read
        return replace(record, number=number, body=body, blob=b"")

    def _select(self, where: str, *values: Any) -> list[Record]:
        rows = self._read(f"SELECT {_READ} FROM records AS r WHERE {where}", *values)
        return [self._record(row) for row in rows]

    def _record(self, row: Sequence[Any]) -> Record:
        try:
            found = dict(zip(_READ.split(", "), row, strict=True))
            found |= {"body": json.loads(found["body"]), "final": bool(found["final"])}
            return Record(**found)
        except ValueError as error:
            raise LedgerError(f"{self._name}: {row[0]} {row[1]} is not JSON: {BROKEN}") from error

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._guard, telling(self._name):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._guard, telling(self._name), transaction(self._connection):
            yield self._connection

    def _let_go(self) -> None:
        if self._claim is not None:
            self._claim.close()


def _row(record: Record) -> tuple[Any, ...]:
    """What is _WRITTEN."""
    try:
        body = json.dumps(dict(record.body), allow_nan=False)
        for text in (record.kind, record.id, record.reason, record.pool):
            text.encode()
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"{record.kind} {record.id} cannot be put: {error}: records are JSON and UTF-8"
        ) from error
    key = (record.kind, record.id, record.version, record.at_s, record.reason)
    return (*key, body, record.pool, record.final, record.blob or None)
