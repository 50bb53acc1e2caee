"""Problem: the one argument of every optimizer."""

from dataclasses import dataclass

import numpy as np

from placer.arrays import IntArray
from placer.errors import ModelError, PlacementError
from placer.model import ModelShape
from placer.objective import Effort, Objective
from placer.placement import EMPTY, Placement, linear, slots_remedy, widened
from placer.profile import Profile
from placer.topology import Topology
from placer.trace import Trace

ROUNDING = 1e-6  # of a slot


def check_model(model: ModelShape, profile: Profile) -> None:
    """Raises ModelError unless the profile can be of the model."""
    if (profile.layers, profile.experts, profile.top_k) != (
        model.layers,
        model.experts,
        model.top_k,
    ):
        raise ModelError(
            f"{model.name} has {model.dims} but the input has {profile.layers} layers x "
            f"{profile.experts} experts, top-{profile.top_k}: give the --model it came from"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Place ``model``'s experts, used as in ``profile``, in ``slots`` a layer on ``topology``.

    ``current`` is what runs today, if anything does; moves are counted from it, or else from
    the linear placement that engines start with. ``trace`` is the traffic behind the profile, for
    optimizers that look at tokens. ``mended``: slots that were moved already, so that ``current``
    keeps the rules (repair.py); they count in the share of the slots that may move.

    Where the objective lets GPUs differ, a placement has as many slots as its fullest GPU needs:
    ``slots`` is then what ``linear`` has.
    """

    model: ModelShape
    topology: Topology
    profile: Profile
    slots: int
    objective: Objective = Objective()
    current: Placement | None = None
    seed: int = 0
    effort: Effort = Effort()
    trace: Trace | None = None
    mended: int = 0

    def __post_init__(self) -> None:
        model = self.model
        check_model(model, self.profile)
        if self.slots < model.experts:
            raise PlacementError(
                f"{self.slots} slots cannot hold {model.experts} experts"
                ": --redundant must be 0 or more"
            )
        if self.slots % self.topology.gpus:
            raise PlacementError(slots_remedy(self.slots, self.topology.gpus, model.experts))
        if self.current is not None and not self.may_follow(self.current):
            raise PlacementError(
                f"the current plan has {self.current.shape} but this asks for {self.linear.shape}"
                ": give the same GPUs, nodes and --redundant"
            )

    @property
    def linear(self) -> Placement:
        """What an engine starts with: experts in order, then their first replicas in order."""
        model, topology = self.model, self.topology
        return linear(model.layers, self.slots, model.experts, topology.gpus, topology.nodes)

    @property
    def start(self) -> Placement:
        """What moves are counted from."""
        return self.linear if self.current is None else self.current

    def further(self, share: float) -> int:
        """How many slots more, of all layers, may move within the share; below 0 if mending took
        more."""
        return int(share * self.slots * self.model.layers + ROUNDING) - self.mended

    def may_follow(self, current: Placement) -> bool:
        """Whether moves can be counted from ``current``: its shape is this problem's, but for the
        empty slots of where GPUs may differ."""
        linear = self.linear
        if self.objective.uneven:
            wide = max(current.slots_per_gpu, linear.slots_per_gpu)
            current, linear = widened(current, wide), widened(linear, wide)
        return current.shape == linear.shape

    def placement(self, physical_to_logical: IntArray) -> Placement:
        """[layers, slots] as a placement on this problem's GPUs."""
        return Placement(
            physical_to_logical, self.model.experts, self.topology.gpus, self.topology.nodes
        )

    def partition(self, gpu: IntArray) -> Placement:
        """One copy of every expert, and the rest of the slots empty.

        gpu: [layers, experts] where each expert stands; on a GPU, ids ascend
        """
        gpus = self.topology.gpus
        fullest = int((gpu[:, :, None] == np.arange(gpus)).sum(axis=1).max())
        size = fullest if self.objective.uneven else self.slots // gpus
        table = np.full((len(gpu), gpus, size), EMPTY)
        for row, places in zip(table, gpu, strict=True):
            for at in range(gpus):
                held = np.flatnonzero(places == at)
                row[at, : len(held)] = held
        return self.placement(table.reshape(len(gpu), -1))
