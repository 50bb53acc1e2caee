"""Expected traffic of tokens whose homes are chosen, against counting tokens."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.clusters import loads_by_request
from placer.cost import score, traffic
from placer.cost.owned import Kinds, cluster_homes, expected, foreseen, kept, scheduled
from placer.objective import Objective
from placer.profile import of_trace
from tests.builders import a_placement, a_problem, a_trace, random_trace

# Two requests: the tokens of the first use experts 0 and 1, those of the second 2 and 3.
APART = a_trace([[[0, 1]], [[0, 1]], [[2, 3]], [[2, 3]]], seq_lens=[2, 2])
TOGETHER = a_placement([[0, 1, 2, 3]])


def test_clusters_share_pairs_as_if_each_used_experts_by_itself() -> None:
    kinds = Kinds.of(of_trace(APART, clustered=True))
    assert kinds.share.tolist() == [0.5, 0.5]
    by_first = kinds.pairs(np.array([1.0, 0.0]))[0]
    owner = 0 if by_first[0, 1] else 1
    pairs = kinds.pairs(np.eye(2)[owner])[0]
    assert pairs.tolist() == [[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0] * 4, [0] * 4]


def test_nobody_travels_if_all_are_at_home() -> None:
    profile = of_trace(APART, clustered=True)
    homes = cluster_homes(profile, TOGETHER)
    for flows in (
        expected(profile, TOGETHER, homes),
        traffic.measured(APART, TOGETHER, "dedup", np.array([0, 1])),
    ):
        assert flows.dispatch.gpu[0] == pytest.approx(np.diag([2.0, 2.0]))
        assert flows.served[0].tolist() == [4, 4]
    assert scheduled(profile, TOGETHER, APART).tolist() == [0, 1]


def test_what_stays_is_counted_once_a_token_and_layer() -> None:
    assert kept(APART, a_placement([[0, 2, 1, 3]])).tolist() == [[2, 2], [2, 2]]
    assert kept(APART, TOGETHER).tolist() == [[2, 0], [0, 2]]


def test_what_will_stay_is_what_tokens_like_them_did() -> None:
    known = replace(APART, token_ids=np.array([7, 7, 9, 9]))
    found = foreseen(known, TOGETHER, np.array([7, 9, 7, 5]), np.array([2, 2]))
    # An unknown token is as all of them: half here, half there.
    assert found.tolist() == [[1, 1], [1.5, 0.5]]


@given(st.integers(0, 2**16), st.sampled_from([1, 2]))
def test_top_1_without_replicas_is_counted_exactly(seed: int, nodes: int) -> None:
    """Clusters are single requests here."""
    trace = random_trace(seed, tokens=30, experts=8, top_k=1)
    profile = of_trace(trace, clustered=True)
    assert profile.clusters is not None
    placement = a_placement([[3, 1, 0, 2, 5, 4, 7, 6]] * 2, 8, 4, nodes)
    loads = loads_by_request(trace)
    request = [int((loads == load).all(axis=(1, 2)).argmax()) for load in profile.clusters.load]
    own = np.array([2, 1])
    found = expected(profile, placement, np.eye(4)[own[request]])
    counted = traffic.measured(trace, placement, "dedup", own)
    assert found.served == pytest.approx(counted.served)
    assert found.dispatch.gpu == pytest.approx(counted.dispatch.gpu)
    assert found.dispatch.node == pytest.approx(counted.dispatch.node)


@given(st.integers(0, 2**16), st.integers(4, 8))
def test_one_cluster_everywhere_is_traffic_with_even_homes(seed: int, slots: int) -> None:
    trace = random_trace(seed, tokens=40, experts=4)
    one = replace(trace, seq_lens=np.array([40]))
    profile = of_trace(one, clustered=True)
    table = np.random.default_rng(seed).permutation(np.arange(slots - slots % 2) % 4)
    placement = a_placement([table.tolist()] * 2)
    found = expected(profile, placement, np.full((1, 2), 0.5))
    even = traffic.expected(profile, placement, "dedup")
    assert found.served == pytest.approx(even.served)
    assert found.dispatch.gpu == pytest.approx(even.dispatch.gpu, rel=1e-9)


def test_the_score_takes_the_homes_that_it_is_given() -> None:
    problem = a_problem(APART, objective=Objective("dedup"))
    home, away = (score(problem, TOGETHER, APART, homes=np.array(own)) for own in ([0, 1], [1, 0]))
    assert home.dispatch_s == 0 < away.dispatch_s
    clustered = replace(problem, profile=of_trace(APART, clustered=True))
    homes = cluster_homes(clustered.profile, TOGETHER)
    assert score(clustered, TOGETHER, homes=homes).dispatch_s == 0
