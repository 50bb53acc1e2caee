"""Zones of requests that use similar experts, in worlds that a reader can check by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.clusters import loads_by_request
from placer.cost import score
from placer.errors import RoutingError
from placer.objective import Objective
from placer.optimizers import optimizer
from placer.optimizers.eldr import Zones, signatures, zones
from tests.builders import a_problem, a_trace, loads, random_trace

# Six requests of a token each, of two kinds.
KINDS = a_trace([[[0, 1]], [[2, 3]]] * 3, seq_lens=[1] * 6)


def test_a_signature_is_shares_of_each_layers_choices() -> None:
    used = np.array([[[3.0, 1.0], [0.0, 2.0]]])
    assert signatures(used).tolist() == [[0.75, 0.25, 0, 1]]


def test_each_kind_is_a_zone() -> None:
    found, homes = zones(KINDS, 2)
    assert homes.tolist() in ([0, 1] * 3, [1, 0] * 3)
    at = signatures(loads_by_request(KINDS))
    assert found.distances(at)[np.arange(6), homes] == pytest.approx(0)


def test_zones_have_as_many_requests() -> None:
    # Five of six requests are of one kind: two of them share the other's zone.
    trace = a_trace([[[0, 1]]] * 5 + [[[2, 3]]], seq_lens=[1] * 6)
    _, homes = zones(trace, 2)
    assert np.bincount(homes).tolist() == [3, 3]


def test_inside_its_band_a_request_goes_to_the_least_loaded() -> None:
    found = Zones(np.array([[0.0], [0.1], [1.0]]))
    # 0.04 is 0.04, 0.06 and 0.96 away: a fifth of 0.92 more than the nearest is near enough.
    alike = np.array([[0.04], [0.04], [0.04], [1.0]])
    assert found.homes(alike, np.array([5, 1, 1, 1])).tolist() == [0, 1, 1, 2]


def test_eplbs_groups_get_the_names_of_their_zones() -> None:
    problem = a_problem(KINDS, objective=Objective("dedup"))
    named, plain = (optimizer(name)(problem).placement for name in ("eldr", "eplb"))
    one, other = score(problem, named, KINDS), score(problem, plain, KINDS)
    assert (one.balancedness, one.fanout_gpus) == (other.balancedness, other.fanout_gpus)


@given(st.integers(0, 2**16), st.integers(2, 5))
def test_few_or_equal_requests_have_zones_too(seed: int, requests: int) -> None:
    trace = replace(random_trace(seed, tokens=requests), seq_lens=np.ones(requests, dtype=int))
    found, homes = zones(trace, 4, seed)
    assert found.centroids.shape == (4, 8)
    assert homes.max() < 4


def test_a_profile_has_no_requests() -> None:
    with pytest.raises(RoutingError, match="eldr needs requests"):
        optimizer("eldr")(a_problem(loads([[1, 2, 3, 4]])))
