from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from placer.cost.serving import LayerMap, serve, token_hash
from placer.cost.sharing import away, shares
from placer.cost.traffic import expected, measured
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace
from tests.builders import a_placement, a_trace, random_trace, worlds


def test_a_replica_serves_its_own_gpu_and_the_tokens_that_visit_it_anyway() -> None:
    # All tokens use 0, on GPUs 0 and 1, and 1, on GPU 0 alone: whoever is at home elsewhere goes
    # to GPU 0, a quarter each from GPUs 2 and 3.
    trace = a_trace([[[0, 1]]] * 400, experts=5, seq_lens=[1] * 400)
    placement = a_placement([[0, 1, 0, 2, 3, -1, 4, -1]], experts=5, gpus=4)
    share = shares(of_trace(trace), placement, "dedup")[0]
    assert share[0] == pytest.approx([0.75, 0.25, 0, 0])
    assert share[1] == pytest.approx([1, 0, 0, 0])
    served = measured(trace, placement, "dedup").served
    assert expected(of_trace(trace), placement, "dedup").served == pytest.approx(served)


def test_a_node_serves_its_own_tokens_whatever_their_company() -> None:
    # As before, with the second replica on the other node: half of the tokens are at home there.
    trace = a_trace([[[0, 1]]] * 400, experts=5, seq_lens=[1] * 400)
    placement = a_placement([[0, 1, 2, 3, 0, -1, 4, -1]], experts=5, gpus=4, nodes=2)
    share = shares(of_trace(trace), placement, "dedup")[0]
    assert share[0] == pytest.approx([0.5, 0, 0.5, 0])
    served = measured(trace, placement, "dedup").served
    assert expected(of_trace(trace), placement, "dedup").served == pytest.approx(served)


# Where expert 0 has two replicas: on GPUs 0 and 1 of one node; on the first GPUs of two nodes of
# three; on GPUs 0 and 1 of the first of two nodes.
TWO = [
    ([0, 1, 0, 2, 3, 4, 5, -1], 4, 1),
    ([0, 1, 2, 3, 0, 4, 5, -1, -1, -1, -1, -1], 6, 3),
    ([0, 1, 0, 2, 3, 4, 5, -1], 4, 2),
]


@pytest.mark.parametrize(("row", "gpus", "nodes"), TWO)
def test_two_replicas_share_exactly_as_single_tokens_do(
    row: list[int], gpus: int, nodes: int
) -> None:
    """Whether one is visited, both or none: of two, one is taken with 1/2 + half the difference of
    the chances. Those of top-2 tokens are exact where the others have one replica."""
    ids = random_trace(3, tokens=8000, layers=1, experts=6).expert_ids[:, 0]
    ids = np.repeat(ids, gpus, axis=0)  # once at home on each GPU
    home, tokens = np.arange(len(ids)) % gpus, len(ids)
    placement = a_placement([row], experts=6, gpus=gpus, nodes=nodes)
    where, hashed = LayerMap.of(placement, 0), token_hash(np.arange(tokens))
    served = serve(ids, where, hashed, home, placement.node_of_gpu)
    truth = np.bincount(served[ids == 0], minlength=gpus) / (ids == 0).sum()
    trace = Trace(ids[:, None], np.ones(tokens, dtype=int), 6)
    assert shares(of_trace(trace), placement, "dedup")[0, 0] == pytest.approx(truth, abs=0.01)
    assert abs(truth.max() - 0.5) > 0.03  # not evenly


def test_of_experts_with_as_many_replicas_the_lower_id_chooses_first() -> None:
    # All tokens use 0, on GPUs 0 and 1, and 1, on GPUs 1 and 2: 1 follows 0 and not 0 1. From two
    # of four homes, half of the tokens find 0 on GPU 1, and half of the others come there, too.
    profile = of_trace(a_trace([[[0, 1]]] * 9))
    placement = a_placement([[0, 2, 0, 1, 1, 3, -1, -1]], gpus=4)
    share = shares(profile, placement, "dedup")[0]
    assert share[0] == pytest.approx([0.5, 0.5, 0, 0])
    assert share[1] == pytest.approx([0, 1 / 4 + 2 / 4 * 0.75, 1 / 4 + 2 / 4 * 0.25, 0])


def test_without_co_activations_company_is_by_chance() -> None:
    # All tokens use 0 and, by halves, 1 or 2: that is their chance with 0 as well.
    profile = of_trace(a_trace([[[0, 1]], [[0, 2]]]))
    placement = a_placement([[0, 1, 0, 3, 2, -1, -1, -1]], gpus=4)
    share = shares(replace(profile, coactivation=None), placement, "dedup")[0]
    assert share[0] == pytest.approx([1 / 4 + 2 / 4 * 0.75, 1 / 4 + 2 / 4 * 0.25, 0, 0])
    assert share == pytest.approx(shares(profile, placement, "dedup")[0])


def test_a_coherent_token_is_served_where_the_layer_before_left_it() -> None:
    """Of 4 tokens 3 use expert 0, on GPU 0, and then all use expert 2, which both GPUs hold."""
    trace = a_trace([[[0], [2]]] * 3 + [[[1], [2]]])
    placement = a_placement([[0, 2, 1, 2], [0, 2, 1, 2]])
    served = shares(of_trace(trace), placement, "coherent")[1, 2]
    assert served.tolist() == [0.75, 0.25]
    assert served == pytest.approx(measured(trace, placement, "coherent").served[1] / 4)


def test_under_allgather_company_is_of_no_matter() -> None:
    # Most tokens that use 0 also use 1 or 2, on the GPU of one of its three replicas.
    trace = random_trace(3, tokens=9000, layers=1, experts=6, top_k=3)
    placement = a_placement([[0, 1, 2, 0, 3, 4, 0, 5, -1]], experts=6, gpus=3)
    served = measured(trace, placement, "allgather").served
    guess = expected(of_trace(trace), placement, "allgather").served
    assert guess == pytest.approx(served, rel=0.01)


def test_under_allgather_replicas_share_evenly() -> None:
    placement = a_placement([[0, 1, 0, 2, 0, 3]], gpus=3)
    share = shares(of_trace(a_trace([[[0, 1]]] * 9)), placement, "allgather")[0]
    assert share[0] == pytest.approx([1 / 3] * 3)


@given(worlds())
def test_every_token_is_served_once(problem: Problem) -> None:
    for profile in (problem.profile, replace(problem.profile, coactivation=None)):
        share = shares(profile, problem.linear, "dedup")
        assert share.sum(axis=2) == pytest.approx(np.ones(share.shape[:2]))
        assert (share >= 0).all()
        assert ((share > 0) == (problem.linear.copies > 0)).all()


def test_the_expected_imbalance_is_near_the_measured() -> None:
    """Where co-location leads tokens to some replicas, loads shared evenly are far off."""
    trace = random_trace(5, tokens=4000, layers=4, experts=16, top_k=4)
    trace = replace(trace, seq_lens=np.ones(4000, dtype=int))  # at home everywhere
    rows = [[*np.random.default_rng(s).permutation(16), *range(8, 16)] for s in range(4)]
    placement = a_placement(rows, experts=16, gpus=8)
    truth, guess = (
        made.served / made.served.mean()
        for made in (
            measured(trace, placement, "dedup"),
            expected(of_trace(trace), placement, "dedup"),
        )
    )
    each = placement.copies / placement.replicas[:, :, None]
    even = np.einsum("le,leg->lg", trace.load, each)
    even /= even.mean()
    assert np.abs(guess - truth).mean() < np.abs(even - truth).mean()


@pytest.mark.parametrize("places", [2, 4, 8])
def test_tokens_from_elsewhere_are_served_once(places: int) -> None:
    for replicas in range(1, places + 1):
        share, colocated = away(np.array([replicas]), places, "dedup")
        # A token at home with a replica stays there, the others are shared evenly.
        elsewhere = 1 - replicas / places
        assert share[0] * replicas * (places - 1) / places == pytest.approx(elsewhere)
        assert 0 <= share[0] <= colocated[0] + 1e-12 <= 1 + 1e-12
