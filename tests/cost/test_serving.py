"""Replicas are chosen by place: here, then this node, then GPUs visited anyway, then by hash."""

import numpy as np
import pytest

from placer.cost.serving import LayerMap, serve, token_hash
from tests.builders import a_placement

NODE_OF = np.array([0, 0, 1, 1])
# Four GPUs in two nodes; expert 0 on GPUs 0 and 3, 1 on 1 and 2, 2 on 2 alone, 3 on 3 alone.
WHERE = LayerMap.of(a_placement([[0, -1, 1, -1, 1, 2, 0, 3]], gpus=4, nodes=2), 0)


def gpus(experts: list[int], here: int | None, hashed: int = 0) -> list[int]:
    at = None if here is None else np.array([here])
    return [int(g) for g in serve(np.array([experts]), WHERE, np.array([hashed]), at, NODE_OF)[0]]


def test_a_map_lists_the_gpus_of_each_expert() -> None:
    assert WHERE.gpus.tolist() == [[0, 3], [1, 2], [2, -1], [3, -1]]
    assert WHERE.count.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("here", [0, 3])
def test_the_replica_where_the_token_is_comes_first(here: int) -> None:
    assert gpus([0], here) == [here]


def test_then_the_replica_in_the_same_node() -> None:
    assert gpus([0], here=1) == [0]
    assert gpus([1], here=3) == [2]


def test_then_the_gpu_that_the_token_visits_anyway() -> None:
    one_node = np.array([0, 0, 0, 0])
    ids, hashed, here = np.array([[0, 3]]), np.array([0]), np.array([1])
    assert serve(ids, WHERE, hashed, here, one_node).tolist() == [[3, 3]]


def test_then_the_hash() -> None:
    one_node = np.array([0, 0, 0, 0])
    chosen = [
        int(serve(np.array([[0]]), WHERE, np.array([h]), np.array([1]), one_node)[0, 0])
        for h in (0, 1, 2)
    ]
    assert chosen == [0, 3, 0]


def test_when_every_gpu_has_the_token_only_the_hash_counts() -> None:
    assert [gpus([0, 3], None, hashed) for hashed in (0, 1)] == [[0, 3], [3, 3]]


def test_the_hash_spreads_consecutive_tokens_evenly() -> None:
    hashed = token_hash(np.arange(3000))
    for replicas in (2, 3, 5):
        share = np.bincount(hashed % replicas, minlength=replicas) / 3000
        assert share == pytest.approx(np.full(replicas, 1 / replicas), abs=0.02)
