"""A paper's figures beside ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

How = Literal["predicted", "calibrated", "measured"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    published: what the paper says: nothing, a figure, or the two ends of a range
    ours:      None where there is no model of it; ``why`` then says so
    how:       predicted: by models alone; calibrated: a constant was chosen so that it comes out as
               published; measured: on recorded routing
    form:      of both, as str.format has it
    why:       where the two are far apart, a sentence
    """

    what: str
    published: tuple[float, ...]
    ours: float | None
    how: How
    form: str = "{:+.1%}"
    why: str = ""

    @property
    def told(self) -> tuple[str, str]:
        """Published and ours, in words."""
        published = " to ".join(self.form.format(one) for one in self.published)
        return published or "-", "-" if self.ours is None else self.form.format(self.ours)


@dataclass(frozen=True, slots=True)
class Table:
    """Figures of a setting. about: model, hardware and traffic, in a sentence; curves: ours, to
    be drawn, if there are any"""

    title: str
    about: str
    rows: Sequence[Row]
    curves: "Curves | None" = None


@dataclass(frozen=True, slots=True)
class Curves:
    """across, up: what the axes are of; lines: by name, both coordinates of each point"""

    across: str
    up: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
