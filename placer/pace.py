"""Pace: how often an engine takes a step and how long that takes, as its workers measured it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from placer.errors import RoutingError

LARGEST = 2**63  # of what a file may count


@dataclass(frozen=True, slots=True)
class Pace:
    """Sums over workers, which add up: the rates are those of a mean worker, and all workers of an
    engine step together.

    steps:    that they took
    busy_s:   seconds that these took: of whole steps, not of the MoE layers alone
    window_s: seconds in which they were counted, idle ones too
    """

    steps: int
    busy_s: float
    window_s: float

    def __post_init__(self) -> None:
        sums = (self.steps, self.busy_s, self.window_s)
        if not all(isfinite(one) and one >= 0 for one in sums) or not self.window_s:
            raise RoutingError(
                f"{self.steps:g} steps took {self.busy_s:g} s of {self.window_s:g} s: all three "
                "must be finite and 0 or more, the last above 0: record again"
            )

    @property
    def step_s(self) -> float | None:
        """Seconds of a whole step; None if there was none."""
        return self.busy_s / self.steps if self.steps and self.busy_s else None

    @property
    def busy(self) -> float:
        """Share of the time in which a step ran."""
        # A step is counted when it ends, which may be in the window after the one it began in.
        return min(self.busy_s / self.window_s, 1.0)


def of_meta(meta: Mapping[str, Any]) -> Pace | None:
    """As recordings say it: ``{"pace": {"steps": ..., "busy_s": ..., "window_s": ...}}``."""
    if (said := meta.get("pace")) is None:
        return None
    names = Pace.__slots__
    numbers: list[Any] = [said.get(name) for name in names] if isinstance(said, dict) else [None]
    possible = all(type(one) in (int, float) and 0 <= one < LARGEST for one in numbers)
    if not possible or type(numbers[0]) is not int:
        raise RoutingError(
            f"meta has pace {said!r:.100}: it must have {', '.join(names)}, numbers of 0 or more"
        )
    return Pace(*numbers)


def merged(paces: Iterable[tuple[str, Pace | None]]) -> Pace | None:
    """By phase, of all that measured; None if none did."""
    known = [(phase, pace) for phase, pace in paces if pace is not None]
    window_s = elapsed((phase, pace.window_s) for phase, pace in known)
    if not window_s:
        return None
    steps = sum(pace.steps for _, pace in known)
    return Pace(steps, sum(pace.busy_s for _, pace in known), window_s)


def elapsed(windows: Iterable[tuple[str, float | None]]) -> float | None:
    """Seconds of recordings by phase: those of one phase add up, and the phases were recorded at
    the same time. None if one is not known."""
    total: dict[str, float] = {}
    for phase, window_s in windows:
        if window_s is None:
            return None
        total[phase] = total.get(phase, 0.0) + window_s
    return max(total.values(), default=None)
