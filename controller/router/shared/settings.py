"""What a front may hold, and for how long; docs/front.md has the table."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from placer.errors import FileError
from placer.files.atomic import read_text
from placer.files.documents import of_yaml
from placer.files.faults import first_fault

FILE = 2**20  # bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds, so that no client and no engine can exhaust the front.

    requests:     under way, held ones included; more are answered 429
    held:         of them that wait for an engine
    connections:  of clients
    request_bytes, bodies_bytes: of a request's body, and of all of them together
    parsed_bytes: of a body that is looked into; a larger one is passed on without scores
    answer_bytes: that are kept back until an answer is whole, so that it can be asked for again
    event_bytes:  of one event of a stream
    head_s, body_s: in which a client must have sent them
    idle_s:       that a client's connection is kept without a request
    stall_s:      that a client may not read
    first_s, gap_s: until an engine's first byte, and between two
    hold_s:       that a request waits for an engine
    drain_s:      that requests under way have at the end
    losses:       engines that may die of a request until it is given up
    scored_tokens: of a prompt that are looked up
    control:      share of requests that go by load alone, to tell what tables win
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)

    requests: int = 8192
    held: int = 4096
    connections: int = 16_384
    request_bytes: int = 32 * 2**20
    bodies_bytes: int = 2**30
    parsed_bytes: int = 2**20
    answer_bytes: int = 2**20
    event_bytes: int = 4 * 2**20
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    stall_s: float = 60.0
    first_s: float = 600.0
    gap_s: float = 300.0
    hold_s: float = 300.0
    drain_s: float = 60.0
    losses: int = 2
    scored_tokens: int = 512
    control: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.control <= 1:
            raise FileError(f"control is {self.control}: give a share from 0 to 1")
        for one in fields(self):
            if one.name != "control" and getattr(self, one.name) <= 0:
                raise FileError(f"{one.name} is {getattr(self, one.name)}: it must be above 0")


def read_limits(path: Path | None) -> Limits:
    """The file's, YAML, and the defaults for what it does not say. Raises FileError."""
    text = read_text(path, FILE) if path else ""
    data = of_yaml(text, str(path))
    try:
        return TypeAdapter(Limits).validate_python({} if data is None else data)
    except ValidationError as error:
        fault = first_fault(error, Limits, text)
        raise FileError(f"{path}: {fault}: see docs/front.md") from error
