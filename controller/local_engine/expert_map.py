"""Which expert each slot serves, and in which page of its rank's memory the weights are.

Slots are names: committing a copy gives its slot another page, and no weights move.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from controller.elastic.hmm import Filled
from placer.arrays import IntArray, frozen
from placer.errors import PlacementError
from placer.placement import EMPTY, Placement, slots_remedy


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMap:
    """table: [layers, slots] the expert of each slot, EMPTY for none
    pages: [layers, slots] the page of each slot, among those of its rank's arena; of an empty one
           any
    """

    table: IntArray
    pages: IntArray
    experts: int
    ranks: int

    @property
    def slots_per_rank(self) -> int:
        return self.table.shape[1] // self.ranks

    @property
    def placement(self) -> Placement:
        return Placement(self.table, self.experts, self.ranks)

    def same_as(self, other: "ExpertMap") -> bool:
        return np.array_equal(self.table, other.table) and np.array_equal(self.pages, other.pages)

    def without(self, slots: Iterable[tuple[int, int]]) -> "ExpertMap":
        """Those slots, (layer, slot), emptied."""
        table = self.table.copy()
        for layer, slot in slots:
            table[layer, slot] = EMPTY
        return replace(self, table=frozen(table))

    def with_copies(self, copies: Iterable[tuple[int, int, int, int]]) -> "ExpertMap":
        """Other experts in slots: (layer, slot, expert, page) of each."""
        table, pages = self.table.copy(), self.pages.copy()
        for layer, slot, expert, page in copies:
            table[layer, slot], pages[layer, slot] = expert, page
        return replace(self, table=frozen(table), pages=frozen(pages))

    def pages_of(self, rank: int) -> IntArray:
        """[layers, slots of a rank] of its slots; 0 for an empty one."""
        size = self.slots_per_rank
        own = slice(rank * size, (rank + 1) * size)
        return np.where(self.table[:, own] == EMPTY, 0, self.pages[:, own])

    def filled(self, rank: int) -> list[Filled]:
        """The pages that a rank serves, by layer and slot."""
        size = self.slots_per_rank
        layer, slot = np.nonzero(self.table[:, rank * size : (rank + 1) * size] != EMPTY)
        places = layer, slot + rank * size
        columns = self.pages[places], layer, self.table[places]
        return [Filled(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def page_of(self, rank: int) -> dict[tuple[int, int], int]:
        """A page that a rank serves, by layer and expert."""
        return {(one.layer, one.expert): one.page for one in self.filled(rank)}

    def pages_in_use(self, rank: int) -> set[int]:
        return {one.page for one in self.filled(rank)}

    def lost(self) -> tuple[int, int] | None:
        """The first layer and expert that no slot holds."""
        for layer, row in enumerate(self.table.tolist()):
            if missing := set(range(self.experts)) - set(row):
                return layer, min(missing)
        return None

    def holders(self, layer: int, expert: int) -> list[int]:
        """The slots of an expert."""
        return np.flatnonzero(self.table[layer] == expert).tolist()


def fresh(placement: Placement) -> ExpertMap:
    """The map of an engine that starts: each slot's page is its place on its rank."""
    table, size = placement.physical_to_logical, placement.slots_per_gpu
    layer = np.arange(placement.layers)[:, None]
    pages = layer * size + np.arange(placement.slots) % size
    return ExpertMap(table, frozen(pages), placement.experts, placement.gpus)


class Replicas:
    """The slots of each expert, for a rank to choose among."""

    def __init__(self, served: ExpertMap) -> None:
        held: Sequence[list[list[int]]] = [
            [served.holders(layer, expert) for expert in range(served.experts)]
            for layer in range(len(served.table))
        ]
        self._count = np.array([[len(slots) for slots in row] for row in held])
        self._slots = np.full((*self._count.shape, self._count.max()), EMPTY)
        for layer, row in enumerate(held):
            for expert, slots in enumerate(row):
                self._slots[layer, expert, : len(slots)] = slots

    def choose(self, layer: int, experts: IntArray, positions: IntArray) -> IntArray:
        """[tokens, top_k] slots for experts: replicas take turns, position by position"""
        turn = positions[:, None] % self._count[layer][experts]
        return self._slots[layer][experts, turn]


def check_counts(ranks: int, slots: int, scratch: int, experts: int) -> None:
    """Raises PlacementError for an engine that cannot be."""
    if ranks < 1:
        raise PlacementError(f"ranks is {ranks}: give 1 or more")
    if slots < experts:
        raise PlacementError(f"{slots} slots do not hold {experts} experts: give as many or more")
    if slots % ranks:
        raise PlacementError(slots_remedy(slots, ranks, experts))
    if scratch < 0:
        raise PlacementError(f"scratch is {scratch}: give 0 pages or more")
