"""Copies that were made and do not serve yet, and the pages that they lie in."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from controller.elastic.hmm import Filled
from controller.local_engine.expert_map import ExpertMap
from placer.schedule import Transfer


class RefusedError(Exception):
    """The reason why a command is not carried out."""


class Arrival(NamedTuple):
    expert: int
    page: int


class Copying(NamedTuple):
    """A copy that is to be made. source_page: of the source's arena"""

    copy: Transfer
    source_page: int
    filled: Filled


class Arrivals:
    """Copies of one engine that do not serve yet. ``pages``: that each rank's arena has"""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._of_slot: dict[tuple[int, int], Arrival] = {}  # by layer and slot

    def add(self, copy: Transfer, page: int) -> None:
        self._of_slot[copy.layer, copy.slot] = Arrival(copy.expert, page)

    def pages(self, served: ExpertMap) -> dict[int, list[int]]:
        """By rank."""
        found: dict[int, list[int]] = {}
        for (_, slot), one in self._of_slot.items():
            found.setdefault(slot // served.slots_per_rank, []).append(one.page)
        return found

    def forget(self) -> None:
        """All of them: their pages are free again."""
        self._of_slot.clear()

    def plan(self, served: ExpertMap, copies: Iterable[Transfer]) -> list[Copying]:
        """The copies that were not made yet, with their pages; all of them or none."""
        planned = []
        arriving = {place: one.expert for place, one in self._of_slot.items()}
        free: dict[int, list[int]] = {}
        held: dict[int, dict[tuple[int, int], int]] = {}
        for copy in copies:
            place = check_place(served, copy.layer, copy.slot)
            if copy.slot // served.slots_per_rank != copy.gpu:
                raise RefusedError(f"{text(copy)} goes to slot {copy.slot}: it is another rank's")
            if place in arriving:
                if (waits := arriving[place]) != copy.expert:
                    raise RefusedError(f"{text(copy)} goes where expert {waits} waits")
                continue
            if served.table[place] == copy.expert:  # committed already
                continue
            if copy.source not in held:
                held[copy.source] = served.page_of(copy.source)
            source_page = held[copy.source].get((copy.layer, copy.expert))
            if source_page is None:
                raise RefusedError(f"{text(copy)}: rank {copy.source} does not serve it")
            if copy.gpu not in free:
                free[copy.gpu] = self.free(served, copy.gpu)
            if not free[copy.gpu]:
                raise RefusedError(
                    f"rank {copy.gpu} has no free page of {self._pages}: commit or discard first"
                )
            arriving[place] = copy.expert
            page = free[copy.gpu].pop(0)
            planned.append(Copying(copy, source_page, Filled(page, copy.layer, copy.expert)))
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

    def free(self, served: ExpertMap, rank: int) -> list[int]:
        """Pages of a rank's arena that hold nothing that serves, or is to."""
        size = served.slots_per_rank
        own = {one.page for (_, slot), one in self._of_slot.items() if slot // size == rank}
        used = own | served.pages_in_use(rank)
        return [page for page in range(self._pages) if page not in used]


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
