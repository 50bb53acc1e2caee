"""What the formats' parsers share."""

import json
from dataclasses import dataclass
from typing import Any

from placer.errors import FileError


@dataclass(frozen=True, slots=True)
class Map:
    """``rows`` [layers][slots] logical experts; ``gpus`` and ``experts`` if the file says how many
    there are; ``notes`` for whoever imports it."""

    rows: list[list[int]]
    gpus: int | None = None
    experts: int | None = None
    notes: tuple[str, ...] = ()


def from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"not JSON ({error}): is it the right --format?") from error


def rows_of(data: Any, what: str) -> list[list[int]]:
    """``data`` if it is a list of lists of whole numbers, none of them empty."""
    if (
        isinstance(data, list)
        and data
        and all(isinstance(row, list) and row for row in data)
        and all(type(expert) is int for row in data for expert in row)
    ):
        return data
    raise FileError(f"{what} is not a list of layers of expert ids: is it the right --format?")
