"""Which expert each slot serves, and in which page of its rank's memory the weights are.

Slots are names: committing a copy gives its slot another page, and no weights move.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from placer.arrays import IntArray, frozen
from placer.placement import EMPTY, Placement


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMap:
    """table: [layers, slots] the expert of each slot, EMPTY for none
    pages: [layers, slots] the page of each slot, among those of its rank and layer
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
        """Those slots, (layer, slot), emptied; they keep their pages."""
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
    table = placement.physical_to_logical
    pages = np.broadcast_to(np.arange(placement.slots) % placement.slots_per_gpu, table.shape)
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
