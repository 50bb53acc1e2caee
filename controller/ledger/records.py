"""Records, as whoever uses the ledger sees them, and as rows of its table: the one door between
values and the JSON that they are kept as."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from controller.ledger.holder import LedgerError
from placer.files.faults import first_fault

WRITTEN = "kind, id, version, at_s, reason, body, pool, final, blob"
LARGEST = 1 << 52  # version: as far as numbers are exact in JSON
LATEST_S = 2.5e11  # of an instant: what follows, in the year 9892, is no unix time
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Record(Generic[T]):
    """One version of one thing. Versions count from 1; what is put is the newest + 1.

    at_s: unix seconds, by the clock of whoever put it
    value: what it says, of its kind's form
    pool: which it belongs to, "" if to none
    final: whether its story has ended; what is open is never forgotten
    number: its place in the ledger, over all kinds; 0 until it is put
    blob: what is too large for the value; empty in what is read, ask ``Ledger.blob``
    text: the value as it is written down, in JSON; empty until it is put
    """

    kind: str
    id: str
    version: int
    at_s: float
    reason: str
    value: T
    pool: str = ""
    final: bool = True
    number: int = field(default=0, compare=False)
    blob: bytes = field(default=b"", compare=False, repr=False)
    text: str = field(default="", compare=False, repr=False)

    def next(self, at_s: float, reason: str, **changes: Any) -> "Record[T]":
        """The version after this one, still to be put; ``changes`` are of other fields."""
        new = {"version": self.version + 1, "number": 0, "blob": b"", "text": "", **changes}
        return replace(self, at_s=at_s, reason=reason, **new)


class Conflict(LedgerError):  # noqa: N818
    """Somebody else was first. actual: the newest version, 0 if there is none"""

    def __init__(self, record: Record[Any], actual: int) -> None:
        self.record, self.expected, self.actual = record, record.version - 1, actual
        super().__init__(
            f"{record.id} is at version {actual} and not {self.expected}"
            ": somebody was first, read it again"
        )


class Unreadable(LedgerError):  # noqa: N818
    """A record that is damaged, or of a form that this version does not know."""


class TooOld(LedgerError):  # noqa: N818
    """Somebody wants to go on reading after a record from which the ledger does not know all."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record that cannot be read; pool: as far as it is known"""

    kind: str
    id: str
    version: int
    pool: str
    number: int
    why: str


@dataclass(frozen=True, slots=True)
class Form(Generic[T]):
    """How values of one kind are read from objects of JSON, and written as such.

    read, check: raise ValueError, TypeError or KeyError for what is none
    check: whether the record agrees with its value
    """

    read: Callable[[dict[str, Any]], T]
    write: Callable[[T], Mapping[str, Any]]
    check: Callable[[Record[T]], None] = lambda record: None


def form_of(value: type[T], check: Callable[[Record[T]], None] = lambda record: None) -> Form[T]:
    """Of a frozen dataclass, field by field."""
    adapter = TypeAdapter(value)
    return Form(adapter.validate_python, adapter.dump_python, check)


Forms = Mapping[str, Form[Any]]
PLAIN: Form[Mapping[str, Any]] = Form(dict, dict)  # of kinds that nobody here knows


def read_row(told: dict[str, Any], forms: Forms) -> Record[Any]:
    """Raises what is a fault for what no ledger wrote."""
    for name in ("kind", "id", "reason", "body", "pool"):
        if not isinstance(told[name], str):
            raise ValueError(f"has a {name} that is no text")
    if not isinstance(told["version"], int) or not 1 <= told["version"] <= LARGEST:
        raise ValueError("has a version that is no number")
    if not isinstance(told["at_s"], float) or not 0 <= told["at_s"] <= LATEST_S:
        raise ValueError(f"is of no unix time: {told['at_s']!r:.30}")
    text = told["body"]
    body = json.loads(text, parse_constant=_refuse)
    if not isinstance(body, dict):
        raise ValueError("is JSON, but no object")
    form = forms.get(told["kind"], PLAIN)
    rest = {name: value for name, value in told.items() if name != "body"}
    found = Record(value=form.read(body), text=text, **{**rest, "final": bool(told["final"])})
    form.check(found)
    return found


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"holds {number}, which is no number of JSON's")


def fault(error: Exception) -> str:
    """What is wrong with a record, on a line of some 200 characters."""
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "is not JSON"
    if isinstance(error, ValidationError):
        return f"has an unknown form: {first_fault(error)}"
    if isinstance(error, KeyError | TypeError | AttributeError):
        return f"has an unknown form: {error!r:.200}"
    return f"{' '.join(str(error).split()):.200}"


def row_of(record: Record[Any], forms: Forms) -> tuple[Any, ...]:
    """What is WRITTEN."""
    try:
        body = json.dumps(forms.get(record.kind, PLAIN).write(record.value), allow_nan=False)
        for text in (record.kind, record.id, record.reason, record.pool):
            text.encode()
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"{record.kind} {record.id} cannot be put: {error}: records are JSON and UTF-8"
        ) from error
    key = (record.kind, record.id, record.version, record.at_s, record.reason)
    return (*key, body, record.pool, record.final, record.blob or None)
