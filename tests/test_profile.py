import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import RoutingError
from placer.profile import BLOCK_TOKENS, Profile, merge, of_chunks, of_trace
from placer.spread import Spread
from placer.trace import Trace, concatenate
from tests.builders import a_trace, loads, random_trace, requests

# Two tokens, two layers, top-2 of three experts.
TRACE = a_trace([[[0, 1], [1, 2]], [[0, 2], [1, 0]]], experts=3)
PLAIN = (np.ones((2, 3)), 1.0, 1)  # of a spread, what comes after its products


def test_load_counts_every_activation() -> None:
    assert of_trace(TRACE).load.tolist() == [[2, 1, 1], [1, 2, 1]]


def test_coactivation_counts_pairs_both_ways() -> None:
    coactivation = of_trace(TRACE).coactivation
    assert coactivation is not None
    assert coactivation[0].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]


def test_transitions_are_all_pairs_of_a_tokens_experts_together_one() -> None:
    transitions = of_trace(TRACE).transitions
    assert transitions is not None
    # {0, 1} then {1, 2}, and {0, 2} then {0, 1}: a quarter each.
    assert (4 * transitions).tolist() == [[[1, 2, 1], [0, 1, 1], [1, 1, 0]]]
    assert transitions.sum() == 2


def test_gates_do_not_weigh_transitions() -> None:
    gates = np.array([[[0.1, 0.9], [0.9, 0.1]]])
    weighed, plain = (
        of_trace(a_trace([[[0, 1], [1, 2]]], experts=3, gates=each)).transitions
        for each in (gates, None)
    )
    assert weighed is not None
    assert plain is not None
    assert weighed.tolist() == plain.tolist()


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
            for a in token[layer]:
                for b in token[layer + 1]:
                    transitions[layer, a, b] += 1
    found = of_trace(trace)
    assert np.array_equal(found.load, load)
    assert found.transitions is not None
    assert np.array_equal(found.transitions, transitions / 9)
    assert found.coactivation is not None
    assert np.array_equal(found.coactivation, coactivation)


def test_reading_in_pieces_changes_nothing() -> None:
    trace = random_trace(0)
    first, second = trace.split(0.5, 0)
    whole, pieces = of_trace(trace), of_chunks([first, second])
    assert (whole.tokens, whole.sequences) == (pieces.tokens, pieces.sequences)
    for name in ("load", "transitions", "coactivation"):
        assert (getattr(whole, name) == getattr(pieces, name)).all()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12), st.integers(0, 1000))
def test_a_spread_equals_summing_block_by_block(lens: list[int], seed: int) -> None:
    """A block is every sequence that ends within the same 64 tokens."""
    ids = random_trace(seed, tokens=sum(lens) + 1, experts=5).expert_ids[:-1]
    blocks: dict[int, list[int]] = {}
    for token, end in enumerate(np.repeat(np.cumsum(lens), lens).tolist()):
        blocks.setdefault((end - 1) // BLOCK_TOKENS, []).append(token)
    products, lengths = np.zeros((2, 5, 5)), np.zeros((2, 5))
    for tokens in blocks.values():
        for layer in range(2):
            counts = np.array([(ids[tokens, layer] == expert).sum() for expert in range(5)])
            products[layer] += np.outer(counts, counts)
            lengths[layer] += len(tokens) * counts
    found = of_trace(Trace(ids, np.array(lens), 5)).spread
    assert found is not None
    assert np.array_equal(found.products, products)
    assert np.array_equal(found.lengths, lengths)
    assert found.squares == sum(len(tokens) ** 2 for tokens in blocks.values())
    assert found.blocks == len(blocks)


def test_spreads_of_pieces_add_up_to_that_of_the_whole() -> None:
    first, second = (random_trace(seed, tokens=2 * BLOCK_TOKENS) for seed in (1, 2))
    pieces, whole = of_chunks([first, second]).spread, of_trace(concatenate([first, second])).spread
    assert pieces is not None
    assert whole is not None
    assert np.array_equal(pieces.products, whole.products)
    assert np.array_equal(pieces.lengths, whole.lengths)
    assert (pieces.squares, pieces.blocks) == (whole.squares, whole.blocks)


def test_noise_is_never_below_none() -> None:
    # Of these shares, rounding leaves the difference of equal sums a little below zero.
    noise = requests(*[12 / 64] * 20, tokens=69).noise
    assert noise.variance.min() == 0
    assert noise.of(np.array([[[0, 1]]]), np.ones((1, 1, 2))).min() == 0


@pytest.mark.parametrize("apart", [0.25, 0.5])
def test_variety_is_how_far_requests_are_apart(apart: float) -> None:
    # Shares of 1/2 +- apart: each expert's have the variance apart^2, with 19 of 20 degrees of
    # freedom. The loads' squares sum to 1/2. 1280 tokens alone would make 1/4 / 1280 of noise.
    found = requests(*[0.5 - apart, 0.5 + apart] * 10).variety
    between = 2 * 20 * (apart**2 / 19 - 0.25 / 1280)
    assert found == pytest.approx((between / 0.5) ** 0.5)


def test_requests_that_are_all_alike_have_no_variety() -> None:
    assert requests(*[0.5] * 20).variety == 0
    assert requests(*[1.0] * 20).variety == 0


def test_drawing_every_token_by_itself_makes_little_variety() -> None:
    ids = np.random.default_rng(0).integers(4, size=(6400, 2, 1))
    found = of_trace(Trace(ids, np.full(100, 64), 4)).variety
    assert found is not None
    assert found < 0.1


def test_two_recordings_that_are_each_alike_are_various_together() -> None:
    one, other = requests(*[0.0] * 10), requests(*[1.0] * 10)
    assert one.variety == other.variety == 0
    together = merge([one, other]).variety
    assert together == requests(*[0.0, 1.0] * 10).variety
    assert together == pytest.approx((20 / 19 - 1 / 64) ** 0.5)  # as above, with apart = 1/2


def test_too_few_requests_have_no_known_variety() -> None:
    assert requests(*[0.0, 1.0] * 4, 0.0).variety is None
    assert requests(*[0.0, 1.0] * 5).variety is not None
    assert requests(*[0.0, 1.0] * 32, tokens=8).variety is None  # 8 blocks of 64 tokens
    assert loads([[30.0, 10.0]]).variety is None
    assert merge([requests(*[0.0, 1.0] * 10), loads([[30.0, 10.0]])]).variety is None


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
        (
            lambda: Profile(np.ones((2, 3)), 1, 3, 1, spread=Spread(np.ones((2, 3)), *PLAIN)),
            r"spread is \[2, 3\] and \[2, 3\]: it must be \[2, 3, 3\] and \[2, 3\]",
        ),
        (
            lambda: Profile(
                np.ones((2, 3)), 1, 3, 1, spread=Spread(np.full((2, 3, 3), np.nan), *PLAIN)
            ),
            "spread holds NaN",
        ),
        (lambda: merge([loads([[1, 1]]), loads([[1, 1, 1]])]), "the profiles disagree"),
    ],
)
def test_what_is_wrong_is_named(make: object, message: str) -> None:
    with pytest.raises(RoutingError, match=message):
        make()  # type: ignore[operator]
