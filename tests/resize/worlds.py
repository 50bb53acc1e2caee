"""Engines so small that their ledgers can be read, and what carries one out."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from placer.placement import EMPTY, Placement
from placer.resize import NONE, Devices, Engine, Kind, Resize, resize
from tests.builders import a_topology

PAGE, DENSE = 100, 1000
UP = Devices(a_topology(3), (0, 1), (0, 1, 2))
DOWN = Devices(a_topology(3), (0, 1, 2), (0, 1))


def an_engine(**more: Any) -> Engine:
    return Engine(**{"expert_bytes": PAGE, "dense_bytes": DENSE, "capacity": 10**6, **more})


def a_map(rows: list[list[list[int]]], experts: int = 4, nodes: int = 1) -> Placement:
    """By layer, the slots of each GPU; all GPUs have as many."""
    table = np.array([[expert for gpu in layer for expert in gpu] for layer in rows])
    return Placement(table, experts, len(rows[0]), nodes)


def found(
    before: Placement,
    after: Placement,
    devices: Devices,
    engine: Engine | None = None,
    relabel: str = "layers",
) -> Resize:
    way = resize(before, after, devices, engine or an_engine(), relabel)  # type: ignore[arg-type]
    assert isinstance(way, Resize)
    return way


def rows(way: Resize, *kinds: Kind) -> list[tuple[int, ...]]:
    """Expert, source, device, was, slot."""
    return [tuple(row)[2:7] for row in way.experts if row.kind in kinds]


def by_kind(way: Resize) -> dict[str, int]:
    return {kind.name: way.experts.count(kind) for kind in Kind if way.experts.count(kind)}


def carried_out(found: Resize) -> list[dict[int, list[int]]]:
    """The pages of each device by layer after all rows were done in order, each checked: whoever
    gives has the page at that time, and what serves until the switch is touched by nobody."""
    before, after, devices = found.before, found.after, found.devices
    pages: list[dict[int, list[int]]] = [{} for _ in range(before.layers)]
    for layer, row in enumerate(before.physical_to_logical.tolist()):
        for slot, expert in enumerate(row):
            device = devices.before[slot // before.slots_per_gpu]
            if expert != EMPTY and device not in devices.dead:
                pages[layer].setdefault(device, []).append(expert)
    table = np.full_like(after.physical_to_logical, EMPTY)
    done = Kind.LOAD
    for row in found.experts:
        assert row.kind >= done
        done, held = row.kind, pages[row.layer]
        if row.kind in (Kind.LOAD, Kind.COPY):
            assert (row.kind == Kind.LOAD) == (row.source == NONE)
            assert row.expert not in held.get(row.device, [])
            assert row.kind == Kind.LOAD or row.expert in held[row.source]
            held.setdefault(row.device, []).append(row.expert)
        elif row.kind == Kind.FREE:
            held[row.device].remove(row.expert)
        else:
            assert row.source == row.device
            assert row.expert in held[row.device]
        if row.was != NONE:
            assert before.physical_to_logical[row.layer, row.was] == row.expert
            assert devices.before[row.was // before.slots_per_gpu] == row.source
        if row.slot != NONE:
            assert devices.after[row.slot // after.slots_per_gpu] == row.device
            assert table[row.layer, row.slot] == EMPTY
            table[row.layer, row.slot] = row.expert
        if row.kind == Kind.KEEP:
            assert row.was % before.slots_per_gpu == row.slot % after.slots_per_gpu
    assert (table == after.physical_to_logical).all()
    return pages


@st.composite
def maps(
    draw: st.DrawFn, gpus: int, nodes: int = 1, layers: int = 2, experts: int = 4
) -> Placement:
    """With every expert, some twice, on a GPU even, and some slots empty."""
    size = draw(st.integers(-(-experts // gpus), 4))
    rows = []
    for _ in range(layers):
        more = st.integers(EMPTY, experts - 1)
        count = size * gpus - experts
        extra = draw(st.lists(more, min_size=count, max_size=count))
        rows.append(draw(st.permutations([*range(experts), *extra])))
    return Placement(np.array(rows), experts, gpus, nodes)


@st.composite
def changes(draw: st.DrawFn) -> tuple[Placement, Placement, Devices]:
    """Of up to four devices on two nodes, some of which may be dead; each placement's are equally
    many of each node in use."""
    hardware = a_topology(4, 2)
    sets = [(0,), (0, 1), (2, 3), (0, 2), (1, 3), (0, 1, 2, 3)]
    at = [draw(st.sampled_from(sets)) for _ in range(2)]
    dead = frozenset(draw(st.sets(st.integers(0, 3), max_size=1))) - set(at[1])
    before, after = (draw(maps(len(one), nodes=len({device // 2 for device in one}))) for one in at)
    return before, after, Devices(hardware, at[0], at[1], dead=dead)
