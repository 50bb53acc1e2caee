"""Tokens 7 and 9 in a model of 2 layers x 4 experts on 2 GPUs, unless said otherwise."""

from dataclasses import fields, is_dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import RoutingError
from placer.tables import (
    device_tables,
    local_activation_rate,
    local_by_layer,
    token_identity,
    token_table,
)
from placer.trace import Trace
from tests.builders import a_placement, a_trace, random_trace
from tests.tables.worlds import LINEAR, TRACE


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


def with_ids(seed: int, experts: int = 4) -> Trace:
    """40 tokens of 8 kinds, in two sequences."""
    ids = np.random.default_rng(seed).integers(8, size=40)
    found = random_trace(seed, experts=experts)
    return Trace(found.expert_ids, found.seq_lens, experts, ids)


@given(st.integers(0, 2**16))
def test_tables_of_two_recordings_add_up_to_that_of_both(seed: int) -> None:
    trace = with_ids(seed)
    one, two = (token_table(trace.select(np.arange(2) == part)) for part in range(2))
    whole, added = token_table(trace), one + two
    assert added.vocabulary.tokens.tolist() == whole.vocabulary.tokens.tolist()
    assert added.times.tolist() == whole.times.tolist()
    assert added.counts.tolist() == whole.counts.tolist()


def test_sums_outgrow_two_bytes() -> None:
    often = a_trace([[[0]]] * 40_000, token_ids=np.full(40_000, 7))
    added = token_table(often) + token_table(often)
    assert added.counts[0].tolist() == [[80_000, 0, 0, 0]] * 2


def test_tables_of_different_models_do_not_add_up() -> None:
    other = token_table(a_trace([[[0], [1]]], experts=5))
    with pytest.raises(RoutingError, match="of 2 layers x 4 experts, top-1 and of 2 layers x 5"):
        _ = token_table(TRACE) + other
    embedded = token_table(TRACE, np.zeros((10, 2)))
    with pytest.raises(RoutingError, match="neighbours' rows do not add up: embed their sum"):
        _ = token_table(TRACE) + embedded


def test_the_local_activation_rate_counts_experts_at_home() -> None:
    homes = np.array([0, 0, 1])
    # Layer 0: home, home, home; layer 1: away, away, away.
    assert local_activation_rate(TRACE, LINEAR, homes) == 0.5
    assert local_by_layer(TRACE, LINEAR, homes).tolist() == [1, 0]
    by_layer = np.array([[0, 1], [0, 1], [1, 1]])
    assert local_activation_rate(TRACE, LINEAR, by_layer) == 5 / 6
    everywhere = a_placement([[0, 1, 2, 3] * 2] * 2)
    assert local_activation_rate(TRACE, everywhere, homes) == 1


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
