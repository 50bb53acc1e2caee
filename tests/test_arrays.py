import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.arrays import pair_sums


@given(st.integers(0, 1000))
def test_a_sum_over_pairs_is_over_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, experts, places = 2, 5, 3
    matrix = rng.random((layers, experts, experts))
    left, right = (
        (rng.integers(experts, size=(layers, places, terms)), rng.random((layers, places, terms)))
        for terms in (2, 4)
    )
    found = pair_sums(matrix, left, right)
    for layer, place in np.ndindex(layers, places):
        total = sum(
            a * matrix[layer, e, f] * b
            for e, a in zip(*(of[layer, place] for of in left), strict=True)
            for f, b in zip(*(of[layer, place] for of in right), strict=True)
        )
        assert found[layer, place] == pytest.approx(total)
