"""Ledgers against all ways that there are, and what holds of any."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from placer.placement import EMPTY, Placement
from placer.plan import Infeasible
from placer.resize import Devices, Kind, Resize, resize
from tests.builders import a_topology
from tests.resize.worlds import (
    DOWN,
    PAGE,
    UP,
    an_engine,
    by_kind,
    carried_out,
    changes,
    found,
    maps,
)


def copies(before: Placement, after: Placement, devices: Devices) -> tuple[int, int]:
    """Experts that devices lack, and those of them that their nodes lack; labels as they are."""
    node = devices.hardware.node_of
    here = before.physical_to_logical.reshape(before.layers, before.gpus, -1)
    lacking = network = 0
    for layer, row in enumerate(after.physical_to_logical.reshape(after.layers, after.gpus, -1)):
        held = {device: set(here[layer, rank]) for rank, device in enumerate(devices.before)}
        for device, content in zip(devices.after, row, strict=True):
            near = set().union(*(held[d] for d in held if node[d] == node[device]))
            wanted = set(content) - {EMPTY}
            lacking += len(wanted - held.get(device, set()))
            network += len(wanted - held.get(device, set()) - near)
    return lacking, network


def one_layer(placement: Placement, layer: int) -> Placement:
    row = placement.physical_to_logical[layer : layer + 1]
    return replace(placement, physical_to_logical=row)


def labelled(placement: Placement) -> Iterator[Placement]:
    """One layer with its GPUs' contents in any order that keeps nodes together."""
    blocks = placement.physical_to_logical.reshape(placement.gpus, -1)
    node = placement.node_of_gpu
    for order in map(list, permutations(range(placement.gpus))):
        by_node = node[order].reshape(placement.nodes, -1)
        if (by_node == by_node[:, :1]).all():
            yield replace(placement, physical_to_logical=blocks[order].reshape(1, -1))


@given(changes())
def test_no_labels_need_fewer_copies_or_as_many_with_fewer_over_the_network(
    change: tuple[Placement, Placement, Devices],
) -> None:
    before, after, devices = change
    devices = replace(devices, dead=frozenset())
    way = found(before, after, devices)
    best = []
    for layer in range(after.layers):
        old, new = one_layer(before, layer), one_layer(after, layer)
        best.append(min(copies(old, other, devices) for other in labelled(new)))
    assert way.experts.count(Kind.COPY) == sum(one for one, _ in best)
    dense = sum(
        part.bytes
        for part in way.dense
        if part.kind == Kind.COPY and part.source // 2 != part.device // 2
    )
    assert way.network_bytes == PAGE * sum(one for _, one in best) + dense


@given(changes())
def test_the_busiest_source_of_each_link_sends_as_little_as_possible(
    change: tuple[Placement, Placement, Devices],
) -> None:
    before, after, devices = change
    devices = replace(devices, dead=frozenset())
    way = found(before, after, devices, an_engine(dense_bytes=0))
    held = before.held_in(before.gpus)
    choices: dict[bool, list[list[int]]] = {True: [], False: []}
    sent = {True: np.zeros(4, dtype=int), False: np.zeros(4, dtype=int)}
    for row in way.experts:
        if row.kind == Kind.COPY:
            all_of = [d for r, d in enumerate(devices.before) if held[row.layer, row.expert, r]]
            near = [d for d in all_of if d // 2 == row.device // 2]
            choices[bool(near)].append(near or all_of)
            sent[bool(near)][row.source] += 1
    for link, every in choices.items():
        if np.prod([len(one) for one in every]) <= 256:
            ways = (np.array(choice, dtype=int) for choice in product(*every))
            assert sent[link].max() == min(np.bincount(way, minlength=4).max() for way in ways)


# Always


@given(changes())
def test_carried_out_row_by_row_the_ledger_ends_with_the_target_and_nothing_else(
    change: tuple[Placement, Placement, Devices],
) -> None:
    before, after, devices = change
    way = found(before, after, devices)
    pages = carried_out(way)
    assert not way.after.lost
    placed = (Kind.KEEP, Kind.REMAP, Kind.COPY, Kind.LOAD)
    assert way.experts.count(*placed) == after.filled == way.after.filled
    for layer in range(after.layers):
        tables = [one.physical_to_logical for one in labelled(one_layer(after, layer))]
        contents = [np.sort(table.reshape(after.gpus, -1)) for table in tables]
        mine = np.sort(way.after.physical_to_logical[layer].reshape(after.gpus, -1))
        assert any((mine == content).all() for content in contents)
    for layer, held in enumerate(pages):
        row = way.after.physical_to_logical[layer].reshape(after.gpus, -1)
        for rank, device in enumerate(devices.after):
            assert set(held.get(device, [])) == set(row[rank].tolist()) - {EMPTY}
            held.pop(device, None)
        assert not any(held.values())


@given(changes())
def test_no_device_ever_holds_more_than_its_capacity(
    change: tuple[Placement, Placement, Devices],
) -> None:
    way = found(*change)
    most = int(way.peak_bytes.max())
    assert isinstance(resize(*change, an_engine(capacity=most)), Resize)
    assert isinstance(resize(*change, an_engine(capacity=most - 1)), Infeasible)


@given(maps(3), st.permutations(range(3)))
def test_the_same_placement_moves_nothing_whatever_its_ranks_are_called(
    before: Placement, order: list[int]
) -> None:
    blocks = before.physical_to_logical.reshape(before.layers, 3, -1)[:, order]
    after = replace(before, physical_to_logical=blocks.reshape(before.layers, -1))
    way = found(before, after, Devices(a_topology(3), (0, 1, 2), (0, 1, 2)))
    assert way.p2p_bytes == way.disk_bytes == 0


@given(maps(2), maps(3))
def test_going_up_and_back_copies_only_what_going_up_took_from_the_old_ranks(
    small: Placement, large: Placement
) -> None:
    up = found(small, large, UP)
    down = found(up.after, small, DOWN, relabel="never")
    held = up.after.held_in(3)
    taken = {
        (row.layer, row.expert, row.device)
        for row in up.experts
        if row.kind == Kind.FREE and not held[row.layer, row.expert, row.device]
    }
    assert down.experts.count(Kind.COPY) == len(taken)


@given(maps(2))
def test_going_up_with_replicas_alone_and_back_moves_nothing(small: Placement) -> None:
    """As where slots a rank are fixed: the survivors keep all they have."""
    table = small.physical_to_logical
    large = Placement(np.hstack([table, table[:, : small.slots_per_gpu]]), 4, 3)
    up = found(small, large, UP, relabel="never")
    assert up.experts.count(Kind.KEEP) == small.filled
    down = found(up.after, small, DOWN)
    assert by_kind(down).keys() <= {"KEEP", "FREE"}
    assert down.p2p_bytes == 0
