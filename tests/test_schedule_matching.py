from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.cost.moves import arrivals
from placer.errors import PlacementError
from placer.placement import Placement
from placer.schedule import match_slots
from tests.builders import a_placement

GPUS = 4


def moved(before: Placement, after: Placement) -> int:
    return int(arrivals(before, after).sum())


def contents(placement: Placement) -> list[list[list[int]]]:
    """[layers][gpus] the experts of each GPU, sorted."""
    table = placement.physical_to_logical.reshape(placement.layers, placement.gpus, -1)
    sorted_table: list[list[list[int]]] = np.sort(table, axis=2).tolist()
    return sorted_table


def relabelled(placement: Placement, orders: tuple[tuple[int, ...], ...]) -> Placement:
    """Each layer's GPUs in another order."""
    table = placement.physical_to_logical.reshape(placement.layers, placement.gpus, -1)
    rows = np.array([row[list(order)] for row, order in zip(table, orders, strict=True)])
    rows = rows.reshape(placement.layers, -1)
    return Placement(rows, placement.experts, placement.gpus, placement.nodes)


def node_preserving(nodes: int) -> list[tuple[int, ...]]:
    size = GPUS // nodes
    return [
        order
        for order in permutations(range(GPUS))
        if all(
            len({gpu // size for gpu in order[first : first + size]}) == 1
            for first in range(0, GPUS, size)
        )
    ]


@st.composite
def changes(draw: st.DrawFn) -> tuple[Placement, Placement]:
    """Two layers of four GPUs in one, two or four nodes; experts may be missing or doubled."""
    nodes, per_gpu = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 3))
    experts = draw(st.integers(2, 6))
    row = st.lists(st.integers(-1, experts - 1), min_size=4 * per_gpu, max_size=4 * per_gpu)
    rows = [[draw(row), draw(row)] for _ in range(2)]
    before, after = (a_placement(layers, experts, GPUS, nodes) for layers in rows)
    return before, after


def test_an_expert_that_stays_keeps_its_slot_and_others_fill_the_rest_in_order() -> None:
    before = a_placement([[0, 1, 2, 3, 4, 5]], experts=6)
    after = a_placement([[2, 0, 5, 4, 3, 1]], experts=6)
    found = match_slots(before, after)
    assert found.physical_to_logical.tolist() == [[0, 5, 2, 3, 4, 1]]
    assert match_slots(before, found).digest == found.digest


def test_of_two_copies_on_a_gpu_one_stays() -> None:
    before, after = a_placement([[0, 0, 2, 3]]), a_placement([[1, 0, 3, 2]])
    assert match_slots(before, after).physical_to_logical.tolist() == [[0, 1, 2, 3]]


def test_empty_slots_stay_empty_where_they_can() -> None:
    before = a_placement([[0, 1, -1, 2, 3, -1]])
    after = a_placement([[-1, 0, 1, 3, 2, -1]])
    assert match_slots(before, after).physical_to_logical.tolist() == [[0, 1, -1, 2, 3, -1]]


def test_gpus_that_changed_names_move_nothing() -> None:
    before, after = a_placement([[0, 1, 2, 3]]), a_placement([[3, 2, 1, 0]])
    assert moved(before, match_slots(before, after)) == 4
    for relabel in ("once", "layers"):
        found = match_slots(before, after, relabel)
        assert found.physical_to_logical.tolist() == [[0, 1, 2, 3]]


def test_layers_may_disagree_on_names_only_where_nothing_joins_them() -> None:
    before = a_placement([[0, 1, 2, 3], [0, 1, 2, 3]])
    after = a_placement([[2, 3, 0, 1], [0, 1, 2, 3]])
    assert moved(before, match_slots(before, after, "layers")) == 0
    assert moved(before, match_slots(before, after, "once")) == 4


def test_gpus_stay_with_the_others_of_their_node() -> None:
    before = a_placement([[0, 1, 2, 3]], gpus=4, nodes=2)
    after = a_placement([[0, 2, 1, 3]], gpus=4, nodes=2)  # 1 and 2 changed nodes
    assert moved(before, match_slots(before, after, "layers")) == 2
    assert moved(before, match_slots(before, after, "layers", keep_nodes=False)) == 0


def test_whole_nodes_may_change_names() -> None:
    before = a_placement([[0, 1, 2, 3]], gpus=4, nodes=2)
    after = a_placement([[3, 2, 0, 1]], gpus=4, nodes=2)
    assert moved(before, match_slots(before, after, "once")) == 0


def test_names_that_make_no_difference_stay() -> None:
    before = a_placement([[0, 1, 0, 1]], experts=2)
    assert match_slots(before, before, "layers").digest == before.digest


@given(changes())
def test_a_permutation_a_layer_moves_the_fewest_slots(change: tuple[Placement, Placement]) -> None:
    before, after = change
    found = moved(before, match_slots(before, after, "layers"))
    orders = node_preserving(before.nodes)
    best = sum(
        min(
            int(arrivals(before, relabelled(after, (order, order)))[layer].sum())
            for order in orders
        )
        for layer in range(2)
    )
    assert found == best


@given(changes())
def test_one_permutation_for_all_layers_moves_the_fewest_slots(
    change: tuple[Placement, Placement],
) -> None:
    before, after = change
    orders = [(order, order) for order in node_preserving(before.nodes)]
    best = min(moved(before, relabelled(after, both)) for both in orders)
    assert moved(before, match_slots(before, after, "once")) == best


@given(changes(), st.booleans())
def test_every_layer_is_the_same_under_other_names(
    change: tuple[Placement, Placement], keep_nodes: bool
) -> None:
    before, after = change
    found = contents(match_slots(before, after, "layers", keep_nodes))
    orders = node_preserving(before.nodes if keep_nodes else 1)
    renamed = [contents(relabelled(after, (order, order))) for order in orders]
    assert all(found[layer] in [one[layer] for one in renamed] for layer in range(2))


@given(changes())
def test_without_new_names_every_gpu_keeps_its_experts(
    change: tuple[Placement, Placement],
) -> None:
    before, after = change
    assert contents(match_slots(before, after)) == contents(after)


def test_placements_of_other_shapes_do_not_match() -> None:
    with pytest.raises(PlacementError, match="2 nodes: give two placements of the same shape"):
        match_slots(a_placement([[0, 1, 2, 3]]), a_placement([[0, 1, 2, 3]], nodes=2))
