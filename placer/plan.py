"""What planning answers: a Plan, or a Hold or Infeasible with the reason why not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from placer.cost import Score
from placer.cost.moves import MoveCost
from placer.model import ModelShape
from placer.objective import Objective
from placer.placement import Placement
from placer.topology import Topology


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What an optimizer returns.

    No placement has a ``step_s`` below ``bound_s``, if that is known; ``notes`` say what the user
    should know of how the placement came about.
    """

    placement: Placement
    bound_s: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """Copy ``expert`` of ``layer`` from GPU ``source`` to ``slot`` on ``gpu``."""

    layer: int
    expert: int
    source: int
    gpu: int
    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Input:
    """A file that a plan was made from; ``tokens`` is None if it holds loads alone."""

    name: str
    sha256: str
    tokens: float | None


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a plan came about: enough to make it again."""

    optimizer: str
    options: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    created: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same traffic before and after the moves."""

    before: Score
    after: Score


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A placement to apply, and why.

    What a foreign file or a hand-written plan cannot say is None: ``fit`` compares on the traffic
    that the plan was made from, ``holdout`` on sequences that it never saw.
    """

    placement: Placement
    reason: str = ""
    model: ModelShape | None = None
    topology: Topology | None = None
    objective: Objective = Objective()
    provenance: Provenance | None = None
    fit: Comparison | None = None
    holdout: Comparison | None = None
    moves: tuple[Move, ...] = ()
    move_cost: MoveCost | None = None
    bound_s: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float | None:
        """How far the step may be above the best possible, as a share of the bound."""
        if self.bound_s is None or self.fit is None:
            return None
        return max(self.fit.after.step_s / self.bound_s - 1, 0.0)


@dataclass(frozen=True, slots=True)
class Hold:
    """No change, because it does not pay."""

    reason: str


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No placement keeps these limits; the reason says which clash and what would do."""

    reason: str
