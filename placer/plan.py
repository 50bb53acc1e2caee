"""What planning answers: a Plan, or a Hold or Infeasible with the reason why not."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from placer.arrays import FloatArray
from placer.clusters import Clusters
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
    should know of how the placement came about. ``instead`` names the baseline that is returned
    where the optimizer found nothing faster. ``scheduled``: whether requests are to be at home
    where their experts are, or else with the least loaded. ``first``: shares of the slots, and a
    placement that moves no more of them, mending included, as good as few moves make it.
    """

    placement: Placement
    bound_s: float | None = None
    notes: tuple[str, ...] = ()
    instead: str = ""
    scheduled: bool = False
    first: tuple[tuple[float, Placement], ...] = ()


@dataclass(frozen=True, slots=True)
class Move:
    """Copy ``expert`` of ``layer`` from GPU ``source`` to ``slot`` on ``gpu``; from the checkpoint
    if ``source`` is None, since no GPU held it."""

    layer: int
    expert: int
    source: int | None
    gpu: int
    slot: int
    reason: str

    @property
    def origin(self) -> str:
        return "checkpoint" if self.source is None else f"GPU {self.source}"


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


@dataclass(frozen=True, slots=True)
class Reach:
    """What the best few moves win: ``moved`` slots in all, at most ``share`` of them."""

    share: float
    moved: int
    balancedness: float
    step_s: float


@dataclass(frozen=True, slots=True)
class Homes:
    """Where requests of each of the profile's clusters are at home.

    clusters: the digest of the clusters (``Clusters.digest``)
    shares:   of each cluster, those of its tokens that GPUs own, as (GPU, share), largest first
    tokens:   of each cluster
    tables:   the digest of the token tables that a scheduler looks requests up in, if some were
              made for this placement
    """

    clusters: str
    shares: tuple[tuple[tuple[int, float], ...], ...]
    tokens: tuple[float, ...]
    tables: str | None = None

    @classmethod
    def of(cls, clusters: Clusters, shares: FloatArray) -> "Homes":
        """shares: [clusters, gpus]"""
        told = []
        for row in shares:
            order = np.argsort(-row, kind="stable")
            told.append(tuple((int(gpu), float(row[gpu])) for gpu in order if row[gpu] > 0))
        return cls(clusters.digest, tuple(told), tuple(clusters.tokens.tolist()))

    @property
    def told(self) -> str:
        """In a line, for people."""
        whole = sum(len(row) == 1 for row in self.shares)
        tables = "no token tables yet" if self.tables is None else f"tables {self.tables:.19}..."
        return (
            f"requests of {len(self.shares)} clusters have homes ({whole} of them one GPU): they "
            f"are to be sent there; {tables}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A placement to apply, and why.

    What a foreign file or a hand-written plan cannot say is None: ``fit`` compares on the traffic
    that the plan was made from, ``holdout`` on sequences that it never saw. ``whole_step_s`` are
    the seconds of a whole step before the moves, where the engine's workers measured them.
    ``mends`` are the rules that the map before it broke. ``homes``: where requests should go; None:
    to the least loaded.
    """

    placement: Placement
    reason: str = ""
    model: ModelShape | None = None
    topology: Topology | None = None
    objective: Objective = Objective()
    provenance: Provenance | None = None
    fit: Comparison | None = None
    holdout: Comparison | None = None
    guarded: Comparison | None = None
    frontier: tuple[Reach, ...] = ()
    moves: tuple[Move, ...] = ()
    move_cost: MoveCost | None = None
    bound_s: float | None = None
    whole_step_s: float | None = None
    notes: tuple[str, ...] = ()
    mends: tuple[str, ...] = ()
    homes: Homes | None = None

    @property
    def gain(self) -> float | None:
        """Share of the MoE layers' time in a step that it saves."""
        return 1 - self.fit.after.step_s / self.fit.before.step_s if self.fit else None

    @property
    def whole_gain(self) -> float | None:
        """Share of a whole step's time that it saves."""
        if self.whole_step_s is None or self.fit is None:
            return None
        return (self.fit.before.step_s - self.fit.after.step_s) / self.whole_step_s

    @property
    def gap(self) -> float | None:
        """How far the step may be above the best possible, as a share of the bound."""
        bounded = self.guarded or self.fit
        if self.bound_s is None or bounded is None:
            return None
        return max(bounded.after.step_s / self.bound_s - 1, 0.0)


@dataclass(frozen=True, slots=True)
class Hold:
    """No change, because it does not pay."""

    reason: str


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No placement keeps these limits; the reason says which clash and what would do."""

    reason: str


def saving(gain: float, whole: float | None) -> str:
    """The shares that a plan saves of a step's MoE layers and, if known, of the whole step; for
    people."""
    told = f"the MoE layers of a step take {gain:.1%} less time"
    return told if whole is None else f"{told} and a whole step {whole:.1%}"
