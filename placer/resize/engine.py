"""What a resize must know of an engine besides its placement: bytes, and how fast it does what."""

from dataclasses import dataclass

from placer.bounds import check_bounds
from placer.errors import PlacementError

MOST_BYTES = 2**60


@dataclass(frozen=True, slots=True)
class Speeds:
    """Stated, not known from a topology. Of the defaults the disk is an NVMe drive shared by eight
    devices; the others were measured with processes on CPUs that share memory (docs/elastic.md).

    disk_bytes_per_s: that a device reads of a checkpoint
    page_s:           to map one expert's page elsewhere and touch it
    attach_s:         for a standby to attach to what a device holds
    switch_s:         between the last step of the old ranks and the first of the new ones
    """

    disk_bytes_per_s: float = 0.6e9
    page_s: float = 25e-6
    attach_s: float = 0.6e-3
    switch_s: float = 0.02

    def __post_init__(self) -> None:
        bounds = dict.fromkeys(("page_s", "attach_s", "switch_s"), (0.0, 1000000000.0))
        check_bounds(self, {"disk_bytes_per_s": (1, 1e30), **bounds}, PlacementError, "speeds")


@dataclass(frozen=True, slots=True)
class Sequence:
    """One in flight. group: the tensor-parallel group, of those before, that serves it (its
    data-parallel rank); bytes: its KV pages on each device of the group"""

    group: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Engine:
    """Bytes of an engine's parts.

    expert_bytes: one expert of one layer, which is one page
    dense_bytes:  what every device holds that is no expert: its shard of attention and the like
    capacity:     of a device, for all of this and KV
    kv_room:      of a device that is set aside for KV pages
    in_flight:    sequences that go on after the change
    """

    expert_bytes: int
    dense_bytes: int
    capacity: int
    kv_room: int = 0
    in_flight: tuple[Sequence, ...] = ()
    speeds: Speeds = Speeds()

    def __post_init__(self) -> None:
        bounds = {
            "expert_bytes": (1, MOST_BYTES),
            "dense_bytes": (0, MOST_BYTES),
            "capacity": (1, MOST_BYTES),
            "kv_room": (0, MOST_BYTES),
        }
        check_bounds(self, bounds, PlacementError, "engine")
        for sequence in self.in_flight:
            check_bounds(sequence, {"bytes": (0, MOST_BYTES)}, PlacementError, "a sequence")
