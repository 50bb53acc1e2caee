"""Placement: which logical expert stands in each slot of each GPU, layer by layer."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from placer import arrays
from placer.arrays import BoolArray, IntArray, frozen
from placer.bounds import MOST_EXPERTS, MOST_LAYERS
from placer.errors import PlacementError

EMPTY = -1
MOST_CELLS = 2**26  # layers x experts x GPUs: what counts copies is as large


class Content(NamedTuple):
    """What some parts of a placement hold, ids ascending. All [layers, parts, slots of a part].

    experts: the expert of each slot, 0 if there is none
    used:    whether there is one
    first:   whether it is the first of its kind in its part
    """

    experts: IntArray
    used: BoolArray
    first: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """``physical_to_logical`` [layers, slots]: the expert of each slot, ``EMPTY`` for none.

    Slots are laid GPU after GPU, the same number on each; GPUs node after node. That a placement
    is well-formed says nothing of its quality or safety: checks.py does.
    """

    physical_to_logical: IntArray
    experts: int
    gpus: int
    nodes: int = 1
    _digest: str = field(default="", init=False, repr=False)  # once somebody asked

    def __post_init__(self) -> None:
        table = self.physical_to_logical
        if table.ndim != 2 or table.dtype.kind not in "iu" or 0 in table.shape:
            raise PlacementError(
                f"physical_to_logical is {table.dtype}{list(table.shape)}"
                ": it must be integers [layers, slots]"
            )
        cells = table.shape[0] * self.experts * self.gpus
        if len(table) > MOST_LAYERS or self.experts > MOST_EXPERTS or cells > MOST_CELLS:
            raise PlacementError(
                f"{table.shape[0]} layers x {self.experts} experts on {self.gpus} GPUs are beyond "
                f"{MOST_LAYERS} layers, {MOST_EXPERTS} experts, or {MOST_CELLS} in all: is this a "
                "placement?"
            )
        if self.gpus < 1 or self.nodes < 1 or self.gpus % self.nodes:
            raise PlacementError(
                f"{self.gpus} GPUs do not divide into {self.nodes} nodes: give counts that do"
            )
        if table.shape[1] % self.gpus:
            raise PlacementError(slots_remedy(table.shape[1], self.gpus, self.experts))
        low, high = int(table.min()), int(table.max())
        if low < EMPTY or high >= self.experts:
            raise PlacementError(
                f"expert id {low if low < EMPTY else high} is outside 0..{self.experts - 1}"
                f" (and {EMPTY} for an empty slot): is this another model's placement?"
            )
        object.__setattr__(self, "physical_to_logical", frozen(table.astype(np.int32)))

    @property
    def layers(self) -> int:
        return self.physical_to_logical.shape[0]

    @property
    def slots(self) -> int:
        return self.physical_to_logical.shape[1]

    @property
    def shape(self) -> str:
        """In words; placements of one shape can follow each other."""
        return (
            f"{self.layers} layers x {self.slots} slots of {self.experts} experts on "
            f"{self.gpus} GPUs in {self.nodes} nodes"
        )

    @property
    def slots_per_gpu(self) -> int:
        return self.slots // self.gpus

    @property
    def filled(self) -> int:
        """Slots, of all layers, that hold an expert."""
        return int((self.physical_to_logical != EMPTY).sum())

    @property
    def empty(self) -> int:
        """Slots, of all layers, that hold none."""
        return self.physical_to_logical.size - self.filled

    @property
    def gpu_of_slot(self) -> IntArray:
        """[slots]"""
        return np.arange(self.slots) // self.slots_per_gpu

    @property
    def node_of_gpu(self) -> IntArray:
        """[gpus]"""
        return np.arange(self.gpus) // (self.gpus // self.nodes)

    @property
    def copies(self) -> IntArray:
        """[layers, experts, gpus] how many slots of each GPU hold each expert."""
        return self._copies_in(self.gpus)

    @property
    def replicas(self) -> IntArray:
        """[layers, experts] slots that hold each expert."""
        return _replicas(self)

    def _copies_in(self, parts: int) -> IntArray:
        table, rows = self.physical_to_logical, np.arange(self.layers)[:, None]
        flat = (rows * self.experts + table) * parts + np.arange(self.slots) * parts // self.slots
        shape = (self.layers, self.experts, parts)
        return np.bincount(flat[table != EMPTY], minlength=int(np.prod(shape))).reshape(shape)

    def held_in(self, parts: int) -> BoolArray:
        """[layers, experts, parts] whether each of so many equal parts of the slots, GPUs or nodes,
        holds each expert."""
        found = np.zeros((self.layers, self.experts + 1, parts), dtype=np.bool_)
        layer, part = np.arange(self.layers)[:, None], np.arange(self.slots) * parts // self.slots
        found[layer, self.physical_to_logical, part] = True  # EMPTY is the last row
        return found[:, :-1]

    def content(self, parts: int) -> Content:
        """Of so many equal parts of the slots: GPUs, nodes."""
        experts = np.sort(self.physical_to_logical.reshape(self.layers, parts, -1), axis=2)
        used = experts != EMPTY
        first = used.copy()
        first[:, :, 1:] &= experts[:, :, 1:] != experts[:, :, :-1]
        return Content(np.maximum(experts, 0), used, first)

    @property
    def by_expert(self) -> IntArray:
        """[layers, slots] slots, each GPU's in the order of what they hold."""
        by_gpu = self.physical_to_logical.reshape(self.layers, self.gpus, -1)
        order = by_gpu.argsort(axis=2, kind="stable")
        return (order + self.slots_per_gpu * np.arange(self.gpus)[:, None]).reshape(self.layers, -1)

    @property
    def in_order(self) -> "Placement":
        """The same experts on each GPU, in ascending order: one for all that are like it."""
        by_gpu = self.physical_to_logical.reshape(self.layers, self.gpus, -1)
        return replace(self, physical_to_logical=np.sort(by_gpu, axis=2).reshape(self.layers, -1))

    def is_like(self, other: "Placement") -> bool:
        """Whether each GPU holds the same in both, in whichever slots."""
        return self.digest == other.digest or self.in_order.digest == other.in_order.digest

    @property
    def lost(self) -> list[tuple[int, int]]:
        """(layer, expert) of those that no slot holds."""
        table, rows = self.physical_to_logical, np.arange(self.layers)[:, None]
        is_held = np.zeros(self.layers * self.experts, dtype=np.bool_)
        is_held[(rows * self.experts + table)[table != EMPTY]] = True
        missing = np.flatnonzero(~is_held).tolist()
        return [divmod(one, self.experts) for one in missing]

    @property
    def digest(self) -> str:
        """``sha256:...`` of the map; two placements are the same if and only if this is."""
        if not self._digest:
            header = (
                f"placer.placement/1 experts={self.experts} gpus={self.gpus} nodes={self.nodes}"
            )
            found = arrays.digest(header, self.physical_to_logical)
            object.__setattr__(self, "_digest", found)
        return self._digest


@lru_cache(maxsize=16)  # a score asks some ten times; all are of few placements
def _replicas(placement: Placement) -> IntArray:
    return frozen(placement._copies_in(1)[:, :, 0])


def widened(placement: Placement, slots_per_gpu: int) -> Placement:
    """The same experts on the same GPUs, each GPU with empty slots behind its own."""
    layers, gpus, own = placement.layers, placement.gpus, placement.slots_per_gpu
    table = np.full((layers, gpus, slots_per_gpu), EMPTY)
    table[:, :, :own] = placement.physical_to_logical.reshape(layers, gpus, own)
    return replace(placement, physical_to_logical=table.reshape(layers, -1))


def slots_remedy(slots: int, gpus: int, experts: int) -> str:
    """The sentence for slots that do not divide by the GPUs."""
    below = slots // gpus * gpus
    fitting = [count for count in (below, below + gpus) if count >= experts]
    use = " or ".join(f"{count} (--redundant {count - experts})" for count in fitting)
    return f"{slots} slots do not divide by {gpus} GPUs: use {use}"


def linear(layers: int, slots: int, experts: int, gpus: int, nodes: int = 1) -> Placement:
    """What an engine starts with: experts in order, then their first replicas in order."""
    table = np.tile(np.arange(slots) % experts, (layers, 1))
    return Placement(table, experts, gpus, nodes)
