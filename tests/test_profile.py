import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import RoutingError
from placer.profile import Profile, merge, of_chunks, of_trace
from tests.builders import a_trace, loads, random_trace

# Two tokens, two layers, top-2 of three experts.
TRACE = a_trace([[[0, 1], [1, 2]], [[0, 2], [1, 0]]], experts=3)


def test_load_counts_every_activation() -> None:
    assert of_trace(TRACE).load.tolist() == [[2, 1, 1], [1, 2, 1]]


def test_coactivation_counts_pairs_both_ways() -> None:
    coactivation = of_trace(TRACE).coactivation
    assert coactivation is not None
    assert coactivation[0].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]


def test_transitions_follow_the_top1_expert() -> None:
    transitions = of_trace(TRACE).transitions
    assert transitions is not None
    assert transitions.tolist() == [[[0, 2, 0], [0, 0, 0], [0, 0, 0]]]


def test_gates_decide_which_expert_is_top1() -> None:
    gates = np.array([[[0.1, 0.9], [0.9, 0.1]]])
    transitions = of_trace(a_trace([[[0, 1], [1, 2]]], experts=3, gates=gates)).transitions
    assert transitions is not None
    assert np.argwhere(transitions[0]).tolist() == [[1, 1]]


@given(st.integers(0, 1000))
def test_a_profile_equals_counting_token_by_token(seed: int) -> None:
    trace = random_trace(seed, tokens=30, layers=3, experts=5, top_k=3)
    load = np.zeros((3, 5))
    transitions = np.zeros((2, 5, 5))
    coactivation = np.zeros((3, 5, 5))
    for token in trace.expert_ids:
        for layer, experts in enumerate(token):
            for a in experts:
                load[layer, a] += 1
                for b in experts:
                    coactivation[layer, a, b] += a != b
        for layer in range(2):
            transitions[layer, token[layer][0], token[layer + 1][0]] += 1
    found = of_trace(trace)
    assert np.array_equal(found.load, load)
    assert found.transitions is not None
    assert np.array_equal(found.transitions, transitions)
    assert found.coactivation is not None
    assert np.array_equal(found.coactivation, coactivation)


def test_reading_in_pieces_changes_nothing() -> None:
    trace = random_trace(0)
    first, second = trace.split(0.5, 0)
    whole, pieces = of_trace(trace), of_chunks([first, second])
    assert (whole.tokens, whole.sequences) == (pieces.tokens, pieces.sequences)
    for name in ("load", "transitions", "coactivation"):
        assert (getattr(whole, name) == getattr(pieces, name)).all()


def test_profiles_add_up() -> None:
    one = of_trace(TRACE)
    two = merge([one, one])
    assert (two.load == 2 * one.load).all()
    assert (two.tokens, two.sequences) == (4, 2)


def test_merging_with_bare_loads_leaves_only_loads() -> None:
    both = merge([of_trace(TRACE), loads([[2, 1, 1], [1, 2, 1]], top_k=2)])
    assert both.coactivation is None
    assert both.transitions is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loads([[1, np.nan]]), "load holds NaN"),
        (lambda: loads([[1, -2]]), "load holds NaN, infinity or negative"),
        (lambda: loads([[0.0, 0.0]]), "empty profile"),
        (lambda: of_chunks([]), "empty trace"),
        (lambda: Profile(np.ones(3), 1, 3, 1), r"load is \[3\]"),
        (lambda: Profile(np.ones((2, 3)), 4, 3, 1), "top_k 4 is outside 1..3"),
        (
            lambda: Profile(np.ones((2, 3)), 1, 3, 1, transitions=np.ones((2, 3, 3))),
            r"transitions is \[2, 3, 3\]: it must be \[1, 3, 3\]",
        ),
        (lambda: merge([loads([[1, 1]]), loads([[1, 1, 1]])]), "the profiles disagree"),
    ],
)
def test_what_is_wrong_is_named(make: object, message: str) -> None:
    with pytest.raises(RoutingError, match=message):
        make()  # type: ignore[operator]
