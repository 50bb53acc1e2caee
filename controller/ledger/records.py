"""Records, as whoever uses the ledger sees them, and as rows of its table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from pydantic import ValidationError

from controller.ledger.file import LedgerError
from placer.files.specs import first_fault

WRITTEN = "kind, id, version, at_s, reason, body, pool, final, blob"
LATEST_S = 2.5e11  # of an instant: what follows, in the year 9892, is no unix time


@dataclass(frozen=True, slots=True)
class Record:
    """One version of one thing. Versions count from 1; what is put is the newest + 1.

    at_s: unix seconds, by the clock of whoever put it
    body: JSON
    pool: which it belongs to, "" if to none
    final: whether its story has ended; what is open is never forgotten
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


class Unreadable(LedgerError):  # noqa: N818
    """A record that is damaged, or of a form that this version does not know."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record that cannot be read; pool: as far as it is known"""

    kind: str
    id: str
    version: int
    pool: str
    number: int
    why: str


def read_row(told: dict[str, Any]) -> Record:
    """Raises ValueError for what no ledger wrote."""
    for name in ("kind", "id", "reason", "body", "pool"):
        if not isinstance(told[name], str):
            raise ValueError(f"has a {name} that is no text")
    if not isinstance(told["version"], int):
        raise ValueError("has a version that is no number")
    if not isinstance(told["at_s"], float) or not 0 <= told["at_s"] <= LATEST_S:
        raise ValueError(f"is of no unix time: {told['at_s']!r:.30}")
    body = json.loads(told["body"], parse_constant=_refuse)
    if not isinstance(body, dict):
        raise ValueError("is JSON, but no object")
    return Record(**{**told, "body": body, "final": bool(told["final"])})


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"holds {number}, which is no number of JSON's")


def fault(error: Exception) -> str:
    """What is wrong with a record, on a line of some 200 characters."""
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "is not JSON"
    if isinstance(error, ValidationError):
        return f"has an unknown form: {first_fault(error)}"
    if isinstance(error, KeyError | TypeError):
        return f"has an unknown form: {error!r:.200}"
    return f"{' '.join(str(error).split()):.200}"


def row_of(record: Record) -> tuple[Any, ...]:
    """What is WRITTEN."""
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
