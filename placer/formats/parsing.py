"""What the formats' parsers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from placer.errors import FileError
from placer.model import ModelShape
from placer.names import ranges


@dataclass(frozen=True, slots=True)
class Map:
    """``rows`` [layers][slots] logical experts; ``gpus`` and ``experts`` if the file says how many
    there are; ``notes`` for whoever imports it."""

    rows: list[list[int]]
    gpus: int | None = None
    experts: int | None = None
    notes: tuple[str, ...] = ()


def other_layers(numbers: Sequence[int], model: ModelShape) -> FileError:
    """That the layers ``numbers`` of a file are not those of ``model``."""
    return FileError(
        f"the file has layers {ranges(numbers)} but {model.name} has {model.hidden_layers}, with "
        f"experts in {ranges(model.moe_layers)}: is it the right --model?"
    )


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
