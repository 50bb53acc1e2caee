"""What the page of a control loop shows: one model, whoever fills it, which is plain JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from pydantic import TypeAdapter

POINTS = 600  # of a line: a screen shows no more
MOST_EVENTS = 3000  # of a run, the newest
MOST_HEAT = 4 * 2**20  # bytes of a run's heat maps, those of the newest plans
MOVES_SHOWN = 100

# What lines are of, by the names that the page knows.
BALANCE, FANOUT, GPUS = "balancedness", "fanout", "gpus"
WAITING, RUNNING, IN_TIME = "waiting", "running", "in_time"


@dataclass(frozen=True, slots=True)
class Line:
    """at_s: seconds since the run began"""

    at_s: Sequence[float] = ()
    values: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class PoolRow:
    """A pool as it is at the end of what is shown. None: not known.

    width:  ranks of its engines, in words
    applied, waits: ids of plans; running: of what is changed now
    homes: what requests win that are sent where their tokens are served
    """

    name: str
    model: str = ""
    mode: str = ""
    engines: int = 0
    gpus: int = 0
    width: str = ""
    slots: int = 0
    balancedness: float | None = None
    outcome: str = ""
    reason: str = ""
    applied: str = ""
    waits: str = ""
    running: str = ""
    homes: str = ""
    conditions: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """kind: decision, plan or operation; state: its outcome or phase"""

    at_s: float
    pool: str
    id: str
    kind: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Heat:
    """Load of each rank over its layer's mean, on the traffic that a plan was made from.

    before, after: [layers, ranks] base64 of bytes, in 255ths of ``peak``
    """

    layers: int
    ranks: int
    peak: float
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Point:
    """Slots that move, and the share of the MoE layers' time that this saves."""

    moved: int
    gain: float


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan. gain, whole_gain: shares of time, None if not known; command: approves it, empty if
    it does not wait; frontier: of its first moves; moves: layer, expert, from, to and why"""

    id: str
    pool: str
    at_s: float
    state: str
    reason: str
    width: int
    moved: int
    moved_bytes: int
    gain: float | None = None
    whole_gain: float | None = None
    command: str = ""
    frontier: Sequence[Point] = ()
    moves: Sequence[tuple[int, int, str, str, str]] = ()
    heat: Heat | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """begins_s: unix seconds. lines: by pool and what they are of; missing: why there are none of
    something; figures: by pool, label and text, to compare; notes: sentences about all of it"""

    name: str
    begins_s: float
    pools: Sequence[PoolRow] = ()
    lines: Mapping[str, Mapping[str, Line]] = field(default_factory=dict)
    events: Sequence[Event] = ()
    plans: Sequence[Planned] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """source: controller, ledger or simulation; of_pool: the only one that details are of, if not
    of all; several runs are compared"""

    title: str
    source: str
    runs: Sequence[Run]
    of_pool: str = ""


_PAGE = TypeAdapter(Page)


def page_json(page: Page) -> bytes:
    return _PAGE.dump_json(page)


def line(at_s: Sequence[float], values: Sequence[float | None], points: int = POINTS) -> Line:
    """At most so many points, 4 or more, with the lowest and the highest of each stretch of time:
    no peak is lost (min-max decimation, as plots of time series have it). What is not known is left
    out."""
    pairs = [(at, one) for at, one in zip(at_s, values, strict=True) if one is not None]
    known = [(round(at, 1), round(float(one), 4)) for at, one in pairs if isfinite(one)]
    if len(known) > points:
        heights, chosen = np.array([one for _, one in known]), {0, len(known) - 1}
        for stretch in np.array_split(np.arange(len(known)), points // 2 - 1):
            chosen.add(int(stretch[heights[stretch].argmin()]))
            chosen.add(int(stretch[heights[stretch].argmax()]))
        known = [known[at] for at in sorted(chosen)]
    return Line([at for at, _ in known], [one for _, one in known])


def newest(events: Sequence[Event], most: int = MOST_EVENTS) -> tuple[list[Event], list[str]]:
    """In the order of time, and a note of those that are left out."""
    ordered = sorted(events, key=lambda one: (one.at_s, one.kind, one.id))
    if len(ordered) <= most:
        return ordered, []
    return ordered[-most:], [f"The time line has the newest {most:,} of {len(ordered):,} events."]
