import numpy as np
import pytest

from placer.cost import balance
from tests.builders import a_placement

LOAD = np.array([[6.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])


def test_rank_load_adds_up_the_experts_of_each_gpu() -> None:
    placement = a_placement([[0, 1, 2, 3], [0, 1, 2, 3]])
    assert balance.rank_load(LOAD, placement).tolist() == [[8, 4], [2, 2]]


def test_replicas_share_their_experts_load() -> None:
    placement = a_placement([[0, 1, 2, 0, 3, -1], [0, 1, 2, 0, 3, -1]])
    assert balance.rank_load(LOAD, placement).tolist() == [[7, 5], [2.5, 1.5]]


def test_balancedness_is_mean_over_max() -> None:
    rank_load = np.array([[8.0, 4.0], [2.0, 2.0]])
    assert balance.by_layer(rank_load).tolist() == [0.75, 1.0]
    assert balance.aggregate(rank_load) == pytest.approx((6 + 2) / (8 + 2))


def test_a_layer_without_load_counts_as_even() -> None:
    assert balance.by_layer(np.zeros((1, 2))).tolist() == [1.0]
    assert balance.aggregate(np.zeros((1, 2))) == 1.0
