import numpy as np
import pytest

from placer.errors import PlacementError
from placer.placement import EMPTY, Placement
from tests.builders import a_placement, a_problem, loads

# Two GPUs of three slots; expert 0 has two replicas, one slot is empty.
PLACEMENT = a_placement([[0, 1, 2, 0, 3, EMPTY]])


def test_slots_are_laid_gpu_after_gpu() -> None:
    assert PLACEMENT.gpu_of_slot.tolist() == [0, 0, 0, 1, 1, 1]


def test_replicas_and_copies_leave_empty_slots_out() -> None:
    assert PLACEMENT.replicas.tolist() == [[2, 1, 1, 1]]
    assert PLACEMENT.copies[0].tolist() == [[1, 1], [1, 0], [1, 0], [0, 1]]


def test_what_parts_hold_is_told_with_ids_ascending_and_each_first_of_its_kind() -> None:
    placement = a_placement([[2, 0, 2, 3, EMPTY, 1]])
    experts, used, first = placement.content(2)
    assert experts.tolist() == [[[0, 2, 2], [0, 1, 3]]]
    assert used.tolist() == [[[True, True, True], [False, True, True]]]
    assert first.tolist() == [[[True, True, False], [False, True, True]]]
    assert placement.held_in(2)[0].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert placement.held_in(1)[0].tolist() == [[1], [1], [1], [1]]


def test_gpus_are_laid_node_after_node() -> None:
    placement = a_placement([[0, 1, 2, 3]], gpus=4, nodes=2)
    assert placement.node_of_gpu.tolist() == [0, 0, 1, 1]


def test_alike_are_those_whose_gpus_hold_the_same_in_some_slots_or_others() -> None:
    other = a_placement([[2, 1, 0, EMPTY, 3, 0]])
    assert PLACEMENT.is_like(other)
    assert other.in_order.physical_to_logical.tolist() == [[0, 1, 2, EMPTY, 0, 3]]
    assert not PLACEMENT.is_like(a_placement([[0, 1, 3, 0, 2, EMPTY]]))


def test_the_digest_is_of_the_map_and_of_nothing_else() -> None:
    same = Placement(np.array([[0, 1, 2, 0, 3, EMPTY]], dtype=np.int64), 4, 2)
    assert same.digest == PLACEMENT.digest
    assert a_placement([[1, 0, 2, 0, 3, EMPTY]]).digest != PLACEMENT.digest
    assert a_placement([[0, 1, 2, 0, 3, EMPTY]], nodes=2).digest != PLACEMENT.digest


def test_an_engine_starts_with_experts_in_order_then_their_replicas() -> None:
    problem = a_problem(loads([[1, 1, 1, 1]]), slots=6)
    assert problem.linear.physical_to_logical.tolist() == [[0, 1, 2, 3, 0, 1]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: a_placement([[0, 1, 4, 3]]), "expert id 4 is outside 0..3"),
        (lambda: a_placement([[0, 1, -2, 3]]), "expert id -2 is outside 0..3"),
        (lambda: a_placement([[0, 1, 2, 3]], gpus=3), "4 slots do not divide by 3 GPUs: use 6"),
        (lambda: a_placement([[0, 1, 2, 3]], gpus=2, nodes=3), "do not divide into 3 nodes"),
        (lambda: Placement(np.array([0, 1]), 2, 1), "must be integers"),
        (
            lambda: a_problem(loads([[1.0] * 256]), slots=290, gpus=32),
            r"290 slots do not divide by 32 GPUs: use 288 \(--redundant 32\)"
            r" or 320 \(--redundant 64\)",
        ),
        (lambda: a_problem(loads([[1.0] * 4]), slots=2), "2 slots cannot hold 4 experts"),
        (
            lambda: a_problem(loads([[1.0] * 4]), current=PLACEMENT),
            "the current plan has 1 layers x 6 slots of 4 experts on 2 GPUs in 1 nodes but this"
            " asks for 1 layers x 4 slots",
        ),
    ],
)
def test_what_is_wrong_is_named(make: object, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        make()  # type: ignore[operator]


def test_no_placement_has_more_layers_than_any_model() -> None:
    with pytest.raises(PlacementError, match="5000 layers x 2 experts on 1 GPUs are beyond 4096"):
        Placement(np.zeros((5000, 2), dtype=int), experts=2, gpus=1)
