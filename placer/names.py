"""Looking things up by name, with the nearest name in the error."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from placer.errors import PlacerError

T = TypeVar("T")


def lookup(
    kind: str, name: str, table: Mapping[str, T], error: type[PlacerError], also: str = ""
) -> T:
    """``table[name]``, in any case; raises ``error`` with what was meant, or what there is."""
    key = name.lower()
    if key in table:
        return table[key]
    near = get_close_matches(key, table, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(table)}"
    raise error(f"unknown {kind} {name!r}: {hint}{also}")
