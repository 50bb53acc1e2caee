"""Which devices an engine has, before and after a change of its width."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from placer.arrays import IntArray
from placer.errors import PlacementError
from placer.names import ranges
from placer.placement import Placement
from placer.plan import Infeasible
from placer.topology import Topology

Group = tuple[int, ...]  # the devices that hold one copy of the dense weights, in order


@dataclass(frozen=True, slots=True)
class Devices:
    """Devices of ``hardware`` by rank: ``before[rank]`` and ``after[rank]``.

    ``tp`` ranks in turn share one copy of the dense weights, each with its shard. Such a group
    stays as it is, comes new or goes as a whole. ``dead`` devices can give nothing any more.

    Raises PlacementError for devices that are not there, or there twice.
    """

    hardware: Topology
    before: tuple[int, ...]
    after: tuple[int, ...]
    tp: int = 1
    dead: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for name, devices in (("before", self.before), ("after", self.after)):
            if len(set(devices)) < len(devices) or not devices:
                raise PlacementError(f"devices {name} are {devices}: give each once, and some")
            for device in devices:
                if not 0 <= device < self.hardware.gpus:
                    raise PlacementError(
                        f"device {device} is outside 0..{self.hardware.gpus - 1}"
                        f" ({self.hardware.title}): give devices of this hardware"
                    )
        if gone := self.dead.intersection(self.after):
            raise PlacementError(f"device {min(gone)} is dead: leave it out of the devices after")
        if self.tp < 1 or len(self.before) % self.tp or len(self.after) % self.tp:
            raise PlacementError(
                f"{len(self.before)} and {len(self.after)} ranks do not divide into groups of"
                f" tp {self.tp}, which never changes: give widths that do"
            )
        had = {device: group for group in self.groups_before for device in group}
        for group in self.groups_after:
            if any(had.get(device, group) != group for device in group):
                raise PlacementError(
                    f"ranks on devices {group} were not one tensor-parallel group: keep groups"
                )

    @property
    def groups_before(self) -> list[Group]:
        return grouped(self.before, self.tp)

    @property
    def groups_after(self) -> list[Group]:
        return grouped(self.after, self.tp)

    @property
    def new(self) -> tuple[int, ...]:
        return tuple(device for device in self.after if device not in self.before)

    @property
    def givers(self) -> tuple[int, ...]:
        """Devices that hold something and live: those that stay and those that retire."""
        return tuple(device for device in self.before if device not in self.dead)

    @property
    def shard(self) -> IntArray:
        """[devices of the hardware] the shard of the dense weights that each has or gets; -1 for
        those without."""
        found = np.full(self.hardware.gpus, -1)
        for devices in (self.before, self.after):
            found[list(devices)] = np.arange(len(devices)) % self.tp
        return found

    def fits(self, before: Placement, after: Placement) -> None:
        """Raises PlacementError for placements that these devices cannot have."""
        if (before.layers, before.experts) != (after.layers, after.experts):
            raise PlacementError(f"{before.shape} cannot become {after.shape}: give one model's")
        for placement, devices in ((before, self.before), (after, self.after)):
            if placement.gpus != len(devices):
                raise PlacementError(
                    f"the placement has {placement.gpus} GPUs but there are {len(devices)} devices"
                    ": give one of each rank"
                )
            pairs = zip(placement.node_of_gpu, self.hardware.node_of[list(devices)], strict=True)
            if len(set(pairs)) != placement.nodes or placement.nodes != len(
                set(self.hardware.node_of[list(devices)])
            ):
                raise PlacementError(
                    f"the placement has {placement.nodes} nodes of"
                    f" {placement.gpus // placement.nodes} GPUs, but its devices are not so in"
                    f" {self.hardware.title}: give other devices, or a placement for their nodes"
                )


def grouped(devices: Sequence[int], size: int) -> list[Group]:
    return [tuple(devices[at : at + size]) for at in range(0, len(devices), size)]


def resized(
    hardware: Topology,
    before: Sequence[int],
    width: int,
    *,
    tp: int = 1,
    smallest: int = 1,
    retired: Collection[int] = (),
    dead: Collection[int] = (),
) -> Devices | Infeasible:
    """The devices of an engine of ``width`` ranks.

    What is ``retired`` or ``dead`` goes first, with its group, then the last ranks; what is still
    lacking comes from the free devices, lowest first. Infeasible, with the widths that would do, if
    there are too few devices, or ``width`` is below the engine's ``smallest`` or no multiple of
    ``tp``.
    """
    gone = {*retired, *dead}
    stay = [group for group in grouped(before, tp) if not gone.intersection(group)]
    free = [device for device in range(hardware.gpus) if device not in {*before, *gone}]
    most = (len(stay) + len(free) // tp) * tp
    least = max(-(-smallest // tp), 1) * tp
    fitting = f"use {least} to {most}" if tp == 1 else f"use multiples of {tp} in {least}..{most}"
    if most < least:
        fitting = f"its smallest width is {smallest}: free more devices"
    if width > most:
        unfit = f", {ranges(sorted(gone))} retired or dead" if gone else ""
        return Infeasible(
            f"{width} ranks need more devices than the {hardware.gpus} of {hardware.name} have"
            f" for them{unfit}: {fitting}"
        )
    if width < least:
        return Infeasible(
            f"{width} ranks are fewer than the engine's smallest width of {smallest}: {fitting}"
        )
    if width % tp:
        return Infeasible(
            f"{width} ranks do not divide into groups of tp {tp}, which never changes: {fitting}"
        )
    new = grouped(free[: len(free) // tp * tp], tp)[: max(width // tp - len(stay), 0)]
    after = [device for group in [*stay[: width // tp], *new] for device in group]
    return Devices(hardware, tuple(before), tuple(after), tp, frozenset(dead))
