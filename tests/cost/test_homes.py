"""Who owns what: every assignment of tiny worlds as the oracle."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.cost.homes import chosen, homes, shared


def most_gain(gain: np.ndarray, lens: np.ndarray) -> float:
    """Of all assignments in which no GPU owns more than the least loaded give one."""
    gpus = gain.shape[1]
    most = np.bincount(homes(lens, gpus), lens, gpus).max()
    return max(
        sum(gain[at, gpu] for at, gpu in enumerate(own))
        for own in product(range(gpus), repeat=len(lens))
        if np.bincount(own, lens, gpus).max() <= most
    )


def test_requests_go_where_they_gain_most_as_long_as_there_is_room() -> None:
    gain = np.array([[9.0, 0.0], [8.0, 0.0], [7.0, 6.0], [1.0, 0.5]])
    # All four would be on GPU 0: the two that lose least leave.
    assert chosen(gain, np.array([1, 1, 1, 1])).tolist() == [0, 0, 1, 1]


@given(st.integers(0, 2**16), st.integers(2, 6))
def test_they_gain_nearly_as_much_as_any_assignment(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    lens = rng.integers(1, 20, count)
    gain = rng.random((count, 2)) * lens[:, None]
    found = chosen(gain, lens)
    most = np.bincount(homes(lens, 2), lens, 2).max()
    assert np.bincount(found, lens, 2).max() <= most
    gained = gain[np.arange(count), found].sum()
    assert gained <= most_gain(gain, lens) + 1e-9
    # Of moves and exchanges of single ones none is left that gains.
    for one, other in product(range(count), repeat=2):
        for change in ({one: 1 - found[one]}, {one: found[other], other: found[one]}):
            tried = found.copy()
            for at, gpu in change.items():
                tried[at] = gpu
            if np.bincount(tried, lens, 2).max() <= most:
                assert gain[np.arange(count), tried].sum() <= gained + 1e-6


def test_shares_of_clusters_are_even_and_split_only_what_must_be() -> None:
    # The first cluster has three quarters of the tokens: no GPU can own it alone.
    found = shared(np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([3.0, 1.0]))
    assert found == pytest.approx(np.array([[2 / 3, 1 / 3], [0, 1]]), abs=1e-5)
    assert shared(np.array([[0.0, 1.0], [1.0, 0.0]]), np.ones(2)).tolist() == [[0, 1], [1, 0]]
    assert shared(np.zeros((3, 2)), np.array([1e-9, 1.0, 1.0])).sum(axis=1).tolist() == [1, 1, 1]
