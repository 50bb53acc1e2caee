from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.labels import assign


@given(st.integers(0, 1000), st.sampled_from([(4, 1), (4, 2), (6, 3)]))
def test_relabelling_is_the_best_there_is(seed: int, shape: tuple[int, int]) -> None:
    gpus, nodes = shape
    size = gpus // nodes
    value = np.random.default_rng(seed).random((gpus, gpus))
    node_of = np.arange(gpus) // size

    def keeps_nodes(order: tuple[int, ...]) -> bool:
        parts = np.array([node_of[gpu] for gpu in order]).reshape(nodes, size)
        return bool((parts == parts[:, :1]).all())

    best = max(
        sum(value[row, gpu] for row, gpu in enumerate(order))
        for order in permutations(range(gpus))
        if keeps_nodes(order)
    )
    assert value[np.arange(gpus), assign(value[None], nodes)[0]].sum() == pytest.approx(best)
