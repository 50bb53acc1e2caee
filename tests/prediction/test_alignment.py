"""Tokens sent to their experts' GPU in equal chunks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from placer.prediction.alignment import align, shuffle
from placer.tables import counted, tables_of
from tests.builders import a_model, a_placement, a_trace


def test_the_least_sure_go_elsewhere_until_all_have_as_many() -> None:
    near = np.zeros((4, 2))
    found = align(np.array([0, 0, 0, 1]), np.array([0.9, 0.1, 0.8, 0.5]), near)
    assert found.tolist() == [0, 1, 0, 1]


def test_they_go_to_the_gpu_with_room_that_is_nearest() -> None:
    near = np.array([[0, 0, 0], [0, 0.2, 0.6], [0, 0.4, 0.3]])
    found = align(np.array([0, 0, 0]), np.array([0.9, 0.5, 0.4]), near)
    assert found.tolist() == [0, 2, 1]


def test_of_a_rest_the_first_gpus_have_one_more() -> None:
    found = align(np.array([1] * 5), np.full(5, 0.5), np.zeros((5, 2)))
    assert np.bincount(found).tolist() == [3, 2]


@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 5))
def test_chunks_never_differ_by_more_than_one(seed: int, tokens: int, gpus: int) -> None:
    rng = np.random.default_rng(seed)
    wished, sure = rng.integers(gpus, size=tokens), rng.random(tokens)
    found = align(wished, sure, rng.random((tokens, gpus)))
    sizes = np.bincount(found, minlength=gpus)
    assert sizes.max() - sizes.min() <= 1
    # Nobody is sent away from a GPU while somebody less sure may stay.
    for gpu in range(gpus):
        stayed = sure[(wished == gpu) & (found == gpu)]
        left = sure[(wished == gpu) & (found != gpu)]
        assert not len(stayed) or not len(left) or stayed.min() >= left.max()


def test_what_is_local_before_and_after() -> None:
    # Three tokens of kind 7 find all on GPU 0, token 9 on GPU 1: one of the three has to leave.
    trace = a_trace([[[0], [1]]] * 3 + [[[3], [2]]], token_ids=np.array([7, 7, 7, 9]))
    tables = tables_of(counted(trace, a_placement([[0, 1, 2, 3]] * 2)), a_model())
    found = shuffle(trace, tables, step_tokens=4)
    assert found.wished.tolist() == [1, 1]
    assert found.wished_imbalance.tolist() == [1.5, 1.5]
    assert found.aligned.tolist() == [0.75, 0.75]
    assert found.aligned_imbalance.tolist() == [1, 1]
    # In steps of two all tokens of the first one are of kind 7, and of the second one of either.
    parts = shuffle(trace, tables, step_tokens=2)
    assert parts.wished_imbalance.tolist() == [1.5, 1.5]
    assert parts.aligned.tolist() == [0.75, 0.75]
