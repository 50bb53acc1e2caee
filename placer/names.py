"""Looking things up by name, with the nearest name in the error; how lists of numbers are put."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from heapq import nsmallest
from typing import TypeVar

from placer.errors import PlacerError

T = TypeVar("T")
FEW = 8  # names that one line can hold


def lookup(
    kind: str, name: str, table: Mapping[str, T], error: type[PlacerError], also: str = ""
) -> T:
    """``table[name]``, in any case; raises ``error`` with what was meant, or what there is."""
    key = name.lower()
    if key in table:
        return table[key]
    near = get_close_matches(key, table, n=1, cutoff=0.3)
    use = f"use one of {', '.join(table)}"
    raise error(f"unknown {kind} {name!r}: {_meant(near) or use}{also}")


def meant(key: str, known: Collection[str]) -> str:
    """What to write instead of a key that is none."""
    return _meant(get_close_matches(key, known, n=1)) or f"use one of {few(known)}"


def _meant(near: Sequence[str]) -> str:
    return f"did you mean {near[0]!r}?" if near else ""


def few(names: Collection[str]) -> str:
    """The first in order, and how many more there are: "a, b, c and 1,492 more"."""
    first = ", ".join(f"{name:.50}" for name in nsmallest(FEW, names))
    more = len(names) - FEW
    return f"{first} and {more:,} more" if more > 0 else first


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers on one line: "0, 3-60", or "1-47 step 2"."""
    parts = []
    at = 0
    while at < len(numbers):
        step = numbers[at + 1] - numbers[at] if at + 1 < len(numbers) else 0
        end = at
        while end + 1 < len(numbers) and numbers[end + 1] - numbers[end] == step:
            end += 1
        if end - at < 2 or step < 1:  # a pair is as short as a range
            end = at
        first, last = numbers[at], numbers[end]
        by = f" step {step}" if step > 1 else ""
        parts.append(f"{first}-{last}{by}" if end > at else str(first))
        at = end + 1
    return ", ".join(parts)
