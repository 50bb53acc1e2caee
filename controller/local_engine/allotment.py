"""Which page of which arena is for what, once an engine has other devices."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from controller.elastic.hmm import Filled
from controller.local_engine.arrivals import RefusedError
from controller.local_engine.expert_map import ExpertMap
from placer.arrays import BoolArray, frozen
from placer.placement import EMPTY, Placement
from placer.schedule.copies import fewest_each

Rows = dict[int, list[Filled]]  # by device


def crowded(now: ExpertMap, left: Sequence[int]) -> Placement:
    """The experts on the ranks that are left. Raises RefusedError if there are none."""
    if not left:
        raise RefusedError("no rank is left")
    own = [now.table.reshape(len(now.table), now.ranks, -1)[:, rank] for rank in left]
    rows = []
    for layer in range(len(now.table)):
        here = [[one for one in table[layer].tolist() if one != EMPTY] for table in own]
        for expert in sorted(
            set(range(now.experts)) - {one for several in here for one in several}
        ):
            min(here, key=len).append(expert)
        rows.append(here)
    size = max(now.slots_per_rank, max(len(several) for here in rows for several in here))
    table = np.full((len(rows), len(left), size), EMPTY)
    for layer, here in enumerate(rows):
        for rank, several in enumerate(here):
            table[layer, rank, : len(several)] = several
    return Placement(table.reshape(len(rows), -1), now.experts, len(left))


def new_devices(order: Sequence[int], count: int) -> list[int]:
    """The lowest that are not there."""
    found = (device for device in range(len(order) + count) if device not in order)
    return [next(found) for _ in range(count)]


def placed(
    now: ExpertMap, after: Placement, order: Sequence[int], order_after: Sequence[int], pages: int
) -> tuple[ExpertMap, dict[int, list[Filled]]]:
    """The map of a placement on other devices, of which each keeps the pages that it has; and the
    pages that are to be filled, by device. Raises RefusedError if an arena has too few."""
    table = after.physical_to_logical
    numbers = np.zeros_like(table)
    missing: dict[int, list[Filled]] = {}
    size = after.slots_per_gpu
    for rank, device in enumerate(order_after):
        held: dict[tuple[int, int], int] = {}
        used: set[int] = set()
        if device in order:
            held, used = now.page_of(at := order.index(device)), now.pages_in_use(at)
        free = (page for page in range(pages) if page not in used)
        here = missing.setdefault(device, [])
        for layer, slot in np.ndindex(len(table), size):
            place = layer, rank * size + slot
            if (expert := int(table[place])) == EMPTY:
                continue
            page = held.pop((layer, expert), None)
            if page is None:
                page = next(free, None)
                if page is None:
                    raise RefusedError(
                        f"device {device} has {pages} pages, too few for what it serves and what "
                        f"it is to serve on {after.gpus} ranks: use more ranks, or a placement "
                        "that keeps more of what it has"
                    )
                here.append(Filled(page, layer, expert))
            numbers[place] = page
    return ExpertMap(table, frozen(numbers), after.experts, after.gpus), missing


def sources(
    now: ExpertMap, order: Sequence[int], missing: Mapping[int, Sequence[Filled]]
) -> tuple[dict[int, list[tuple[int, int, Filled]]], dict[int, list[Filled]]]:
    """Whom each page is copied from, so that the busiest gives as few as possible; and what nobody
    has, to be loaded."""
    held = [now.page_of(rank) for rank in range(now.ranks)]
    rows = [(device, one) for device, several in missing.items() for one in several]
    holds = np.array(
        [[(one.layer, one.expert) in pages for pages in held] for _, one in rows], dtype=np.bool_
    ).reshape(-1, now.ranks)
    known: BoolArray = np.any(holds, axis=1)
    source = np.zeros(len(rows), dtype=np.int64)
    source[known] = fewest_each(holds[known], np.zeros(now.ranks, dtype=np.int64))
    copies: dict[int, list[tuple[int, int, Filled]]] = defaultdict(list)
    loads: dict[int, list[Filled]] = defaultdict(list)
    for (device, one), there, rank in zip(rows, known.tolist(), source.tolist(), strict=True):
        if there:
            copies[device].append((order[rank], held[rank][one.layer, one.expert], one))
        else:
            loads[device].append(one)
    return copies, loads
