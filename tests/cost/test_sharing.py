from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from placer.cost.sharing import away, shares
from placer.cost.traffic import expected, measured
from placer.problem import Problem
from placer.profile import of_trace
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
    """Where company leads tokens to some replicas, loads shared evenly are far off."""
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
        share, company = away(np.array([replicas]), places, "dedup")
        # A token at home with a replica stays there, the others are shared evenly.
        elsewhere = 1 - replicas / places
        assert share[0] * replicas * (places - 1) / places == pytest.approx(elsewhere)
        assert 0 <= share[0] <= company[0] + 1e-12 <= 1 + 1e-12
