import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.router.scheduling import kernels
from controller.router.scheduling.baselines import similarity, votes
from controller.router.scheduling.lookup import WHOLE, Lookup
from placer.errors import RoutingError
from placer.tables import TokenTable, Vocabulary, token_table
from placer.tables.factors import factors
from placer.tables.owning import away, local, visits
from tests.builders import a_placement, a_trace

# Two layers, top-2. Token 5 uses 0, 1 and then 0, 2; token 6 uses 2, 3 or 1, 3, and then 2, 3.
TRACE = a_trace(
    [[[0, 1], [0, 2]], [[2, 3], [2, 3]], [[1, 3], [2, 3]]], token_ids=np.array([5, 6, 6])
)
HALVES = a_placement([[0, 1, 2, 3], [0, 1, 2, 3]])  # experts 0 and 1 on GPU 0


def test_local_is_the_share_of_a_tokens_experts_on_a_gpu() -> None:
    found = local(token_table(TRACE), HALVES)
    np.testing.assert_allclose(found, [[0.75, 0.25], [0.125, 0.875], [1 / 3, 2 / 3]])


def test_visits_is_the_chance_of_having_any_of_them_there() -> None:
    """Token 6 at the first layer: of 0 and 1 it has one in half of the cases; of 2 and 3 always."""
    found = visits(token_table(TRACE), HALVES)
    np.testing.assert_allclose(found[:2], [[1, 0.5], [0.25, 1]])


def test_away_is_what_is_visited_besides_and_not_for_experts_that_are_at_home_too() -> None:
    """Token 5's experts 0 and 1 are on GPU 0, and of the second layer 0 and 2 on both; on GPU 1 of
    the first layer only 1 is."""
    found = away(token_table(TRACE), HALVES)
    np.testing.assert_allclose(found[:2], [[0.5, 1], [1, 0.25]], atol=1e-9)
    both = a_placement([[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 0, 2]], gpus=2)
    np.testing.assert_allclose(away(token_table(TRACE), both)[0], [0, 0.5], atol=1e-9)


def test_replicas_are_at_home_on_each_of_their_gpus() -> None:
    both = a_placement([[0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 0, 2]], gpus=2)
    assert local(token_table(TRACE), both)[0].tolist() == [1, 0.75]


def test_votes_are_of_the_gpu_with_most_of_each_layer() -> None:
    assert votes(token_table(TRACE), HALVES)[:2].tolist() == [[1, 0], [0, 1]]


def test_similarity_grows_with_what_is_shared_with_a_centroid() -> None:
    centroids = np.zeros((2, 2, 4))
    centroids[0, :, 0] = centroids[1, :, 3] = 1
    found = similarity(token_table(TRACE), centroids)
    np.testing.assert_allclose(found[:2], [[1, 0], [0, 1]])


def test_sums_are_over_the_prompts_rows_and_others_count_as_all_tokens_do() -> None:
    table = token_table(TRACE)
    lookup = Lookup.of(table.vocabulary, [local(table, HALVES)])
    sums = np.empty(2, dtype=np.int64)
    assert kernels.summed(lookup.tables, np.array([5, 6, 9, -3]), sums) == 4
    assert sums / WHOLE == pytest.approx([0.75 + 0.125 + 2 / 3, 0.25 + 0.875 + 4 / 3], abs=1e-4)


def test_a_long_prompt_is_looked_up_in_part_evenly() -> None:
    ids = np.arange(2)
    lookup = Lookup.of(Vocabulary(ids, ids), [np.array([[1.0], [0.0], [0.5]])])
    tokens, sums = np.zeros(3 * kernels.MOST_SCORED, dtype=np.int64), np.empty(1, dtype=np.int64)
    tokens[1::3] = 1  # which are not those looked up
    assert kernels.summed(lookup.tables, tokens, sums) == kernels.MOST_SCORED
    assert sums[0] == kernels.MOST_SCORED * WHOLE


@given(st.integers(0, 2**31))
def test_factors_give_back_the_chances_that_they_stand_for(seed: int) -> None:
    """Exactly, with as many of them as there are kinds of tokens."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, size=(2, 4, 3))
    table = TokenTable(Vocabulary(np.arange(3), np.arange(3)), np.array([5, 5, 5, 15]), counts, 2)
    weights, basis, every, _ = factors(table)
    chance = (counts / table.times[:, None]).transpose(1, 0, 2).reshape(4, 6)
    assert every == 1
    np.testing.assert_allclose((weights @ basis)[:3], chance[:3], atol=1e-3)


def test_an_answer_is_foretold_further_from_the_mean_than_its_prompts_tokens_are() -> None:
    """Kinds 0 and 1 half of the time each, and a prompt of six tokens of kind 0 and four of 1."""
    counts, ids = np.array([[[6, 0], [0, 6], [6, 6]]]), np.arange(2)
    table = TokenTable(Vocabulary(ids, ids), np.array([6, 6, 12]), counts, 1)
    used = factors(table)._replace(further=2.5)
    lookup = Lookup.of(Vocabulary(ids, ids), [np.ones((3, 1))], used)
    sums = np.empty(1 + len(used.basis), dtype=np.int64)
    prompt = np.repeat(ids, [6, 4])
    scored = kernels.summed(lookup.tables, prompt, sums)
    chance = sums[1:] / scored @ lookup.tables.basis
    assert chance == pytest.approx([0.5 + 2.5 * 0.1, 0.5 - 2.5 * 0.1], abs=1e-3)


def test_identities_that_are_no_tokens_are_refused() -> None:
    huge = Vocabulary(np.array([2**40]), np.array([0]))
    with pytest.raises(RoutingError, match=f"token {2**40} is no tokenizer's: record token ids"):
        Lookup.of(huge, [np.zeros((2, 1))])
