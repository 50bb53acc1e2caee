"""What a schedule is made of: budget, transfers, rounds."""

from dataclasses import dataclass, replace

import numpy as np

from placer.errors import PlacementError
from placer.placement import Placement


@dataclass(frozen=True, slots=True)
class Budget:
    """What a change may use at a time. Zero bytes freeze.

    rank_bytes:    in flight to a rank, and as much from it, on each of its links (local, network)
    node_bytes:    in flight into a node over the network, and as much out of it; None: as much as
                   its ranks may
    scratch_slots: experts that a GPU can hold beside its slots
    """

    rank_bytes: int
    node_bytes: int | None = None
    scratch_slots: int = 8

    def __post_init__(self) -> None:
        for name in ("rank_bytes", "node_bytes", "scratch_slots"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise PlacementError(f"{name} is {value}: it must be 0 or more (0 bytes freeze)")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Copy ``expert`` of ``layer`` from GPU ``source`` to ``slot``, which is on ``gpu``."""

    layer: int
    expert: int
    source: int
    gpu: int
    slot: int


@dataclass(frozen=True, slots=True)
class Round:
    """Three steps; all ranks wait for each other after each.

    drops:   (layer, slot) emptied; their experts have other copies
    copies:  from slot to slot where the target is empty, else into its GPU's scratch memory
    commits: copies of this round or an earlier one that begin to serve, all at once; what their
             slots held before is dropped
    seconds: of its busiest rank, link and direction
    """

    drops: tuple[tuple[int, int], ...]
    copies: tuple[Transfer, ...]
    commits: tuple[Transfer, ...]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class MigrationSchedule:
    """The way to ``after``, or with a ``reason`` why ``pending`` copies cannot begin.

    after:         what stands after the last round
    lower_bound_s: no schedule within the budget, with copies from the nearest holders, is faster
    """

    rounds: tuple[Round, ...]
    after: Placement
    makespan_s: float = 0.0
    lower_bound_s: float = 0.0
    pending: int = 0
    reason: str = ""

    @property
    def copies(self) -> int:
        return sum(len(round.copies) for round in self.rounds)

    def renamed(self, before: Placement, stands: Placement) -> "MigrationSchedule":
        """The same rounds, made for ``before``, for what ``is_like`` it in other slots."""
        if before.digest == stands.digest:
            return self
        slots = np.empty_like(before.by_expert)
        np.put_along_axis(slots, before.by_expert, stands.by_expert, axis=1)
        named = slots.tolist()
        table = np.empty_like(self.after.physical_to_logical)
        np.put_along_axis(table, slots, self.after.physical_to_logical, axis=1)

        def all_of(transfers: tuple[Transfer, ...]) -> tuple[Transfer, ...]:
            return tuple(
                Transfer(one.layer, one.expert, one.source, one.gpu, named[one.layer][one.slot])
                for one in transfers
            )

        rounds = tuple(
            Round(
                tuple((layer, named[layer][slot]) for layer, slot in round.drops),
                all_of(round.copies),
                all_of(round.commits),
                round.seconds,
            )
            for round in self.rounds
        )
        return replace(self, rounds=rounds, after=replace(self.after, physical_to_logical=table))
