"""Contexts of tokens and the experts that follow them, in a model of 1 layer x 4 experts, top-1."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.arrays import IntArray
from placer.tables import contexts as of_contexts
from placer.tables import token_identity, token_table
from placer.tables.contexts import ORDERS, ContextTable, context_table, contexts
from placer.tables.experts import ExpertTables, evidence, expert_tables, followers
from placer.trace import Trace
from tests.builders import a_trace, random_trace


def told(*requests: list[tuple[int, int]]) -> Trace:
    """Requests of (token, its expert)."""
    tokens = [one for request in requests for one in request]
    return a_trace(
        [[[expert]] for _, expert in tokens],
        seq_lens=[len(request) for request in requests],
        token_ids=np.array([token for token, _ in tokens]),
    )


def tables(trace: Trace) -> ExpertTables:
    return expert_tables(token_table(trace), [context_table(trace, order) for order in ORDERS])


def best(
    found: ExpertTables, tokens: list[int], order: int, lens: list[int] | None = None
) -> list[int]:
    """The likeliest expert of each token."""
    rows = found.rows(np.array(tokens), np.array(lens or [len(tokens)]), order)
    chosen: list[int] = found.experts[0, rows, 0].tolist()
    return chosen


# Token 7 mostly uses expert 0, but after 5 it uses 3, and after 5 5 it uses 2.
OFTEN = [(7, 0), (7, 0), (7, 0), (5, 1), (7, 3), (5, 1), (7, 3), (5, 1), (5, 1), (7, 2)]


def test_the_longest_context_that_is_known_is_believed() -> None:
    found = tables(told(OFTEN, OFTEN, OFTEN))
    assert best(found, [7], 4) == [0]
    assert best(found, [5, 7], 1) == [1, 0]
    assert best(found, [7, 5, 7], 4) == [0, 1, 3]
    assert best(found, [5, 5, 7], 2) == [1, 1, 3]
    assert best(found, [5, 5, 7], 3) == [1, 1, 2]


def test_it_backs_off_to_the_token_and_then_to_the_prior() -> None:
    found = tables(told(OFTEN, OFTEN, OFTEN))
    assert best(found, [9, 7], 4) == [1, 0]  # 9 was never seen, nor 9 7: the prior, the token
    assert best(found, [7, 7], 0) == [1, 1]  # expert 1 came four times, 0 three times


def test_of_experts_that_came_as_often_the_commoner_is_taken() -> None:
    found = tables(told([(6, 3), (6, 1), (5, 3)]))
    assert best(found, [6], 1) == [3]


def test_a_context_ends_with_its_request() -> None:
    found = tables(told(OFTEN, OFTEN, OFTEN))
    assert best(found, [7, 5, 7], 2, [3]) == [0, 1, 3]
    assert best(found, [7, 5, 7], 2, [2, 1]) == [0, 1, 0]


def test_what_only_one_request_said_is_left_out_however_often_it_said_it() -> None:
    """Its prompt and its answer may be two sequences."""
    secret = [(3, 1), (4, 2)] * 10
    alone = tables(told(OFTEN, secret, secret))
    assert sum(map(len, alone.keys)) == 0
    common = tables(told(secret, secret, secret[:4]))
    assert [len(keys) for keys in common.keys] == [2, 2, 1]  # 34 43, 343 434, 3434


def test_the_likely_ones_are_counted() -> None:
    half = tables(told([(7, 0), (7, 1), (5, 3), (5, 3), (5, 2), (6, 0), (6, 1), (6, 2)]))
    rows = half.rows(np.array([7, 5, 6]), np.array([3]), 1)
    assert half.likely[0, rows].tolist() == [1, 1, 0]  # a half, two thirds, a third


def test_experts_of_a_large_model_take_two_bytes() -> None:
    trace = a_trace([[[299]]], experts=300, token_ids=np.array([7]))
    assert tables(trace).experts.itemsize == 2
    assert tables(told(OFTEN)).experts.itemsize == 1


@given(st.integers(0, 2**16), st.sampled_from(ORDERS))
def test_counts_of_contexts_are_those_of_a_dictionary(seed: int, order: int) -> None:
    routed = random_trace(seed, layers=1, top_k=2)
    ids = np.random.default_rng(seed).integers(2, size=routed.tokens)
    trace = Trace(routed.expert_ids, routed.seq_lens, 4, ids)
    times: dict[tuple[int, ...], int] = {}
    requests: dict[tuple[int, ...], set[int]] = {}
    for at, tokens in enumerate(_sequences(trace)):
        for end in range(order, len(tokens) + 1):
            key = tuple(tokens[end - order : end].tolist())
            times[key] = times.get(key, 0) + 1
            requests.setdefault(key, set()).add(at)
    found = context_table(trace, order)
    assert sorted(found.seen[1].tolist()) == sorted(times.values())
    assert sorted(found.seen[0].tolist()) == sorted(map(len, requests.values()))
    for key, often in times.items():
        hashed = contexts(np.array(key), np.array([order]), order).keys
        row = np.searchsorted(found.keys, hashed)
        assert found.seen[1, row].tolist() == [often]
        assert found.counts[0, row].sum() == 2 * often


@given(st.integers(0, 2**16), st.sampled_from(ORDERS))
def test_contexts_of_two_recordings_add_up_to_those_of_both(seed: int, order: int) -> None:
    routed = random_trace(seed)
    ids = np.random.default_rng(seed).integers(3, size=routed.tokens)
    trace = Trace(routed.expert_ids, routed.seq_lens, 4, ids)
    one, two = (context_table(trace.select(np.arange(2) == part), order) for part in range(2))
    whole, added = context_table(trace, order), one + two
    for name in ("keys", "seen", "counts"):
        assert getattr(added, name).tolist() == getattr(whole, name).tolist()


def test_where_memory_ends_the_contexts_of_most_requests_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of_contexts, "MOST_CELLS", 2 * 4)  # two contexts of 1 layer x 4 experts
    requests = [[(1, 0), (2, 1)], [(1, 0), (2, 1)], [(3, 0), (4, 3)] * 3, [(3, 0), (4, 3)]]
    found: ContextTable = context_table(told(*requests), 2)
    assert found.seen.tolist() in ([[2, 2], [2, 4]], [[2, 2], [4, 2]])
    added = context_table(told(*requests[:2]), 2) + context_table(told(*requests[2:]), 2)
    assert added.counts.tolist() == found.counts.tolist()


def test_followers_are_all_pairs_of_a_tokens_experts_of_two_layers() -> None:
    trace = a_trace([[[0, 1], [2, 3]], [[0, 2], [2, 3]]])
    (found,) = followers(trace).tolist()
    assert found == [[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_what_an_expert_says_for_the_next_layer_is_bayes_rule() -> None:
    # Of 99,996 tokens, top-1, a third use 0 and go on to 1; the others use 1 and go on to 0 or 2.
    third = 33_332
    pairs = np.array([[[0, third, 0], [third, 0, third], [0, 0, 0]]])
    load = np.array([[third, 2 * third, 0], [third, third, third]])
    found = np.exp(evidence(pairs, load, 3 * third, 1)[0])  # of top-1 it is the chance
    assert found[:2].tolist() == [
        pytest.approx([0, 1, 0], abs=1e-4),
        pytest.approx([0.5, 0, 0.5], abs=1e-4),
    ]
    assert found[2] == pytest.approx(1 / 3, abs=1e-4)  # never seen: the prior
    # Of two experts each says what lacks half of the prior, so that it is not counted twice.
    both = evidence(pairs, load, 3 * third, 2)[0]
    assert np.exp(both[2] + both[2]) == pytest.approx(1 / 3, abs=1e-3)


def _sequences(trace: Trace) -> list[IntArray]:
    return np.split(token_identity(trace), np.cumsum(trace.seq_lens)[:-1])
