"""Tokens 7 and 9 in a model of 2 layers x 4 experts on 2 GPUs, unless said otherwise."""

from dataclasses import fields, is_dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import RoutingError
from placer.placement import EMPTY
from placer.tables import (
    CERTAIN,
    device_tables,
    local_activation_rate,
    token_identity,
    token_table,
)
from placer.trace import Trace
from tests.builders import a_placement, a_trace, random_trace

# Token 7 twice, token 9 once; GPU 0 holds experts 0 and 1 in both layers.
ROUTING = [[[0], [2]], [[1], [2]], [[3], [1]]]
TRACE = a_trace(ROUTING, token_ids=np.array([7, 7, 9]))
LINEAR = a_placement([[0, 1, 2, 3]] * 2)


def test_a_tokens_experts_are_those_that_it_had() -> None:
    table = token_table(TRACE)
    assert table.probability(np.array([7, 9]), 0).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0, 1]]
    assert table.probability(np.array([7, 9]), 1).tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_a_token_never_seen_gets_the_layers_prior() -> None:
    prior = token_table(TRACE).probability(np.array([0, 8, 100]), 0)
    assert prior.tolist() == [[1 / 3, 1 / 3, 0, 1 / 3]] * 3


def test_with_an_embedding_it_gets_its_nearest_neighbours_row() -> None:
    # 0 is nearest to 9, 1 is as near to 7 as to 9: the lower id counts.
    embedding = np.array([[9.0], [0], [5], [5], [5], [5], [5], [-8], [5], [8]])
    table = token_table(TRACE, embedding)
    assert table.probability(np.array([0, 1, 7, 9]), 1).tolist() == [
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 0],
        [0, 1, 0, 0],
    ]
    assert table.probability(np.array([10]), 1).tolist() == [[0, 1 / 3, 2 / 3, 0]]


def test_an_embedding_of_another_model_is_refused() -> None:
    with pytest.raises(RoutingError, match="token id 9 is outside the embedding's 8 rows"):
        token_table(TRACE, np.zeros((8, 2)))


def test_a_tokens_identity_is_its_vocabulary_id() -> None:
    assert token_identity(TRACE).tolist() == [7, 7, 9]


def test_without_ids_the_set_of_first_experts_stands_in() -> None:
    sets = list(combinations(range(6), 3))
    trace = a_trace([[row] for row in [*sets, *(row[::-1] for row in sets)]], experts=6)
    ranks = token_identity(trace)
    assert sorted(ranks[:20].tolist()) == list(range(20))  # 6 over 3 sets, each its own
    assert ranks[20:].tolist() == ranks[:20].tolist()  # in whatever order


def test_it_stands_in_for_the_largest_models_too() -> None:
    ids = np.stack([np.arange(start, 512, 52) for start in (0, 1, 43)])
    first, second, last = token_identity(Trace(ids[:, None, :10], np.array([3]), 512)).tolist()
    assert len({first, second, last}) == 3
    assert min(first, second, last) >= 0


def test_a_tokens_device_has_most_of_its_experts() -> None:
    tables = device_tables(TRACE, LINEAR)
    seven, nine, other = tables.vocabulary.rows(np.array([7, 9, 8]))
    assert tables.device[:, [seven, nine, other]].tolist() == [[0, 1, 0], [1, 0, 1]]
    assert tables.confidence[:, [seven, nine]].tolist() == [[CERTAIN] * 2] * 2
    assert tables.confidence[:, other].tolist() == [round(CERTAIN * 2 / 3)] * 2
    assert tables.near[seven].tolist() == [0.5, 0.5]


def test_replicas_share_a_tokens_score() -> None:
    # Token 7 has experts 0 and 1, on GPU 0, and then expert 2, on both.
    placement = a_placement([[0, 1, EMPTY, 2, 3, EMPTY], [0, 1, 2, 2, 3, EMPTY]])
    tables = device_tables(TRACE, placement)
    assert tables.near[tables.vocabulary.rows(np.array([7]))].tolist() == [[0.75, 0.25]]


def test_a_requests_score_is_the_sum_over_its_tokens() -> None:
    # Token 7 is half on each GPU, 9 on GPU 1 then 0; unknown tokens are 1/2 and 1/2 too.
    scores = device_tables(TRACE, LINEAR).request_scores(np.array([7, 9, 7]), np.array([1, 2]))
    assert scores.tolist() == [[0.5, 0.5], [1.0, 1.0]]
    pure = a_trace([[[0], [1]], [[3], [2]]], token_ids=np.array([7, 9]))
    found = device_tables(pure, LINEAR).request_scores(np.array([7, 9, 9]), np.array([1, 2]))
    assert found.tolist() == [[1, 0], [0, 2]]


def test_the_surer_of_the_tables_is_believed() -> None:
    # Half of token 7 is on GPU 1, and the 2-gram knows which: that which was there before.
    trace = a_trace([[[0]] * 3, [[3]] * 3] * 2, token_ids=np.array([7] * 4))
    tables = device_tables(trace, a_placement([[0, 1, 2, 3]] * 3))
    before = np.array([[0, 0], [1, 1], [1, 0]])
    assert tables.guess(np.array([7] * 3), 2, before).tolist() == [0, 1, 0]  # 1, 0 never came
    assert tables.next_confidence[2].tolist() == [[CERTAIN, 0], [0, CERTAIN]]
    assert not tables.next_confidence[:2].any()

    # Both tokens come by 0, 0 and part there: now the tokens know.
    parting = a_trace([[[0], [0], [0]], [[0], [0], [3]]], token_ids=np.array([7, 9]))
    tables = device_tables(parting, a_placement([[0, 1, 2, 3]] * 3))
    assert tables.guess(np.array([7, 9]), 2, np.zeros((2, 2), dtype=int)).tolist() == [0, 1]


def test_at_equal_confidence_the_2_gram_is_believed() -> None:
    # Token 9 always was on GPU 0, and tokens that came by 0, 0 always went on to GPU 1.
    trace = a_trace([[[0], [0], [2]], [[3], [3], [0]]], token_ids=np.array([7, 9]))
    tables = device_tables(trace, a_placement([[0, 1, 2, 3]] * 3))
    assert tables.guess(np.array([9]), 2, np.zeros((1, 2), dtype=int)).tolist() == [1]


def test_the_published_table_takes_11_7_mb() -> None:
    # arXiv 2503.04398: 102,400 tokens x 60 layers in int16.
    tokens = 102_400
    ids = np.zeros((tokens, 60, 1), dtype=np.uint8)
    trace = Trace(ids, np.array([tokens]), 2, token_ids=np.arange(tokens))
    tables = device_tables(trace, a_placement([[0, 1]] * 60, experts=2))
    assert tables.device.nbytes / 2**20 == pytest.approx(11.7, abs=0.05)


def test_the_local_activation_rate_counts_experts_at_home() -> None:
    homes = np.array([0, 0, 1])
    # Layer 0: home, home, home; layer 1: away, away, away.
    assert local_activation_rate(TRACE, LINEAR, homes) == 0.5
    by_layer = np.array([[0, 1], [0, 1], [1, 1]])
    assert local_activation_rate(TRACE, LINEAR, by_layer) == 5 / 6
    everywhere = a_placement([[0, 1, 2, 3] * 2] * 2)
    assert local_activation_rate(TRACE, everywhere, homes) == 1


@given(seed=st.integers(0, 2**16), gpus=st.sampled_from([1, 2, 4]))
def test_tables_expect_the_rate_that_their_own_trace_has(seed: int, gpus: int) -> None:
    trace = random_trace(seed, tokens=30, layers=3, experts=8, top_k=3)
    rng = np.random.default_rng(seed)
    placement = a_placement([rng.permutation(8).tolist() for _ in range(3)], 8, gpus)
    tables = device_tables(trace, placement)
    rows = tables.vocabulary.rows(token_identity(trace))
    homes = tables.near[rows].argmax(axis=1)
    expected = tables.near[rows, homes].mean()
    assert local_activation_rate(trace, placement, homes) == pytest.approx(expected, abs=1e-6)
    confidence = tables.confidence[:, rows].mean() / CERTAIN
    best = local_activation_rate(trace, placement, tables.device[:, rows].T)
    assert best == pytest.approx(confidence, abs=1e-4)


def test_another_models_trace_is_refused() -> None:
    with pytest.raises(RoutingError, match=r"the trace has 2 layers .* placement 1 layers"):
        device_tables(TRACE, a_placement([[0, 1, 2, 3]]))


def arrays_of(tables: object) -> dict[str, np.ndarray]:
    """Of the tables and their vocabulary, by name."""
    found = {}
    for field in fields(tables):  # type: ignore[arg-type]
        value = getattr(tables, field.name)
        if isinstance(value, np.ndarray):
            found[field.name] = value
        elif is_dataclass(value):
            found |= arrays_of(value)
    return found


@given(st.permutations(range(12)), st.integers(1, 11))
def test_tables_hold_no_sequence_whatever_order_tokens_came_in_they_are_the_same(
    order: list[int], first: int
) -> None:
    """Nor where a request ended: 12 tokens of 4 kinds, in two requests."""
    ids, routing = np.array([5, 7, 7, 9] * 3), random_trace(3, tokens=12, layers=3).expert_ids
    trace = Trace(routing, np.array([12]), 4, ids)
    mixed = Trace(routing[order], np.array([first, 12 - first]), 4, ids[order])
    placement = a_placement([[0, 1, 2, 3]] * 3)
    for made in (token_table, lambda of: device_tables(of, placement)):
        ours, theirs = arrays_of(made(trace)), arrays_of(made(mixed))
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
            assert 12 not in array.shape, f"{name} has an entry for each token"
