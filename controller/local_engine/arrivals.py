"""Copies that were made and do not serve yet, and the pages that they lie in."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.rank_messages import CopyPage
from placer.placement import EMPTY
from placer.schedule import Transfer


class RefusedError(Exception):
    """The reason why a command is not carried out."""


class Arrival(NamedTuple):
    expert: int
    page: int


class Arrivals:
    """Copies of one engine that do not serve yet. ``pages``: that each rank has in a layer"""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._of_slot: dict[tuple[int, int], Arrival] = {}  # by layer and slot

    def add(self, copy: Transfer, page: int) -> None:
        self._of_slot[copy.layer, copy.slot] = Arrival(copy.expert, page)

    def forget(self) -> None:
        """All of them: their pages are free again."""
        self._of_slot.clear()

    def plan(
        self, served: ExpertMap, copies: Iterable[Transfer]
    ) -> list[tuple[Transfer, CopyPage]]:
        """The copies that were not made yet, with their pages; all of them or none."""
        planned = []
        arriving = dict(self._of_slot)
        for copy in copies:
            place = check_place(served, copy.layer, copy.slot)
            if copy.slot // served.slots_per_rank != copy.gpu:
                raise RefusedError(f"{text(copy)} goes to slot {copy.slot}: it is another rank's")
            if place in arriving:
                if (waits := arriving[place].expert) != copy.expert:
                    raise RefusedError(f"{text(copy)} goes where expert {waits} waits")
                continue
            if served.table[place] == copy.expert:  # committed already
                continue
            sources = [
                slot
                for slot in served.holders(copy.layer, copy.expert)
                if slot // served.slots_per_rank == copy.source
            ]
            if not sources:
                raise RefusedError(f"{text(copy)}: rank {copy.source} does not serve it")
            page = self._free_page(served, copy, arriving)
            arriving[place] = Arrival(copy.expert, page)
            source_page = int(served.pages[copy.layer, sources[0]])
            planned.append((copy, CopyPage(copy.layer, copy.source, source_page, page)))
        return planned

    def committed(self, served: ExpertMap, commits: Sequence[Transfer]) -> ExpertMap:
        """The map that they lead to. What a slot serves already was committed before."""
        here = []
        for copy in commits:
            place = check_place(served, copy.layer, copy.slot)
            arrival = self._of_slot.get(place)
            if arrival is not None and arrival.expert == copy.expert:
                here.append((*place, *arrival))
            elif arrival is not None or served.table[place] != copy.expert:
                raise RefusedError(f"{text(copy)} is not in slot {copy.slot}: copy it first")
        return served.with_copies(here)

    def leave(self, commits: Iterable[Transfer]) -> None:
        """They serve now."""
        for copy in commits:
            self._of_slot.pop((copy.layer, copy.slot), None)

    def _free_page(
        self, served: ExpertMap, copy: Transfer, arriving: dict[tuple[int, int], Arrival]
    ) -> int:
        """The slot's own if it is empty; else one that belongs to none."""
        size, of_slots = served.slots_per_rank, served.pages[copy.layer]
        if served.table[copy.layer, copy.slot] == EMPTY:
            return int(of_slots[copy.slot])
        used = set(of_slots[copy.gpu * size : (copy.gpu + 1) * size].tolist())
        used |= {
            one.page
            for (layer, slot), one in arriving.items()
            if layer == copy.layer and slot // size == copy.gpu
        }
        free = set(range(self._pages)) - used
        if not free:
            raise RefusedError(
                f"rank {copy.gpu} has no free page in layer {copy.layer}"
                f" (scratch {self._pages - size}): commit or discard first"
            )
        return min(free)


def check_place(served: ExpertMap, layer: int, slot: int) -> tuple[int, int]:
    """The same, if there is such a slot."""
    layers, slots = served.table.shape
    if not (0 <= layer < layers and 0 <= slot < slots):
        raise RefusedError(
            f"layer {layer} slot {slot} is not one of {layers} layers x {slots} slots"
        )
    return layer, slot


def text(copy: Transfer) -> str:
    return f"expert {copy.expert} of layer {copy.layer} from rank {copy.source}"
