"""The forms of what the ledger keeps, by kind: what is of none of them is left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from controller.changes import plans
from controller.changes.operations import Operation
from controller.ledger.records import Record


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a worker applied or refused last; nothing of it is needed."""

    epoch: int = 0
    digest: str = ""
    refused_epoch: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Abort:
    """That an operation should go back. key: of whoever wants it"""

    key: str


@dataclass(frozen=True, slots=True)
class Map:
    """The sizes of a placement. shape: layers and slots"""

    shape: tuple[int, int]
    experts: int
    gpus: int
    nodes: int


@dataclass(frozen=True, slots=True)
class Ids:
    """last: the largest number that was given"""

    last: int


def _reader(form: Any) -> Callable[[Record], object]:
    adapter = TypeAdapter(form)
    return lambda record: adapter.validate_python(record.body)


# What raises for a record that the controller, or whoever looks into the ledger, could not read. Of
# decisions any will do.
READERS: dict[str, Callable[[Record], object]] = {
    "plan": plans.read,
    "operation": Operation.of,
    "abort": _reader(Abort),
    "acknowledgement": _reader(Acknowledgement),
    "placement": _reader(Map),
    "ids": _reader(Ids),
}
