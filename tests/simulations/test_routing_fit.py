"""Routers whose numbers are known, and traces that are drawn from them: do they come out?"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controller.fleet.workers import Fleet
from placer.errors import FileError, RoutingError
from placer.files.routing import write_trace
from placer.model import ModelShape, preset
from placer.profile import of_trace
from placer.virtual_clock import VirtualClock
from simulations.routing import of_trace as recorded_routing
from simulations.routing_fit.fit import clusters_of, fit
from simulations.routing_fit.moments import moments
from simulations.routing_fit.router import Router, balancing, chances
from simulations.scenario import Scenario
from tests.builders import random_trace
from tests.simulations.test_scenarios import POOL, written

LAYERS, EXPERTS, TOP_K = 4, 32, 2
LENS = np.full(120, 60)
PAIRS = ("transitions", "coactivation")
ALL = Router(
    skew=0.6, variety=1.5, shared=0.8, clusters=3, drift=1.5, together=2.5, factors=2.5, stays=0.9,
    length=60,
)  # fmt: skip


def test_what_was_put_in_comes_out() -> None:
    trace = ALL.draw(LAYERS, EXPERTS, TOP_K, LENS, seed=5)
    found = fit(trace)
    assert found.skew == pytest.approx(ALL.skew, rel=0.35)
    assert found.variety == pytest.approx(ALL.variety, rel=0.35)
    assert found.shared == pytest.approx(ALL.shared, abs=0.25)
    assert found.clusters == ALL.clusters
    assert found.drift == pytest.approx(ALL.drift, rel=0.5)
    assert found.together == pytest.approx(ALL.together, rel=0.35)
    assert found.factors == pytest.approx(ALL.factors, rel=0.7)  # of 4 layers
    assert found.stays == pytest.approx(ALL.stays, abs=0.08)
    assert (found.length, found.spread) == pytest.approx((60, 0))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_router_that_chooses_all_alike_has_none_of_any(seed: int) -> None:
    found = fit(Router().draw(LAYERS, EXPERTS, TOP_K, LENS, seed))
    none = (found.skew, found.together, found.stays, found.variety, found.shared, found.drift)
    assert none == (0, 0, 0, 0, 0, 0)


def test_skewed_loads_alone_are_nothing_else() -> None:
    found = fit(Router(skew=0.8).draw(LAYERS, EXPERTS, TOP_K, LENS, seed=3))
    assert found.skew == pytest.approx(0.8, rel=0.2)
    assert (found.together, found.variety, found.drift) == (0, 0, 0)


def test_the_same_seed_draws_the_same_trace() -> None:
    once, again, other = (ALL.draw(LAYERS, EXPERTS, TOP_K, LENS, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once.expert_ids, again.expert_ids)
    assert (once.expert_ids != other.expert_ids).any()
    assert fit(once) == fit(again)


def test_lengths_have_their_mean_and_deviation() -> None:
    lens = Router(length=200, spread=0.5).lengths(20_000, seed=0)
    assert lens.mean() == pytest.approx(200, rel=0.02)
    assert np.log(lens).std() == pytest.approx(0.5, rel=0.05)


def test_a_trace_too_short_to_tell_is_refused() -> None:
    with pytest.raises(RoutingError, match="2 sequences of 40 tokens"):
        fit(random_trace(0))


def test_two_factors_of_one_size_count_as_two_and_fewer_as_one() -> None:
    for factors in (1.0, 2.0, 5.5):
        squares = replace(ALL, factors=factors).sizes ** 2
        assert squares.sum() == pytest.approx(1)
        assert 1 / (squares**2).sum() == pytest.approx(factors, rel=0.01)


def test_a_bias_makes_loads_about_what_they_are_to_be() -> None:
    """Half of the tokens want expert 0 and half 1: both as often as 2, which nobody wants."""
    odds = np.array([[5.0, 0, 0], [0, 5.0, 0]] * 10, dtype=np.float32)
    bias = balancing(odds, np.array([1 / 3, 1 / 3, 1 / 3]))
    chances = np.exp(odds + bias)
    chances /= chances.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(chances.mean(axis=0), 1 / 3, atol=0.08)


def test_clusters_come_one_after_another_the_more_they_drift() -> None:
    when = np.array([0.25, 0.75])
    assert Router(clusters=2).mix(when).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    some = Router(clusters=2, drift=1.0).mix(when)
    assert some[0, 0] == pytest.approx(1 / (1 + np.exp(-1)))
    assert Router(clusters=2, drift=1e6).mix(when).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("clusters", [2, 4])
def test_clusters_are_counted(clusters: int) -> None:
    router = Router(variety=2.0, shared=1.0, clusters=clusters)
    assert round(clusters_of(moments(router.draw(4, 32, 2, np.full(120, 40), 4)))) == clusters


def test_a_pool_has_the_statistics_of_a_trace_of_another_model(tmp_path: Path) -> None:
    """Mixtral's loads deviate as gpt-oss-20b's did."""
    recorded = preset("gpt-oss-20b")
    dims = recorded.layers, recorded.experts, recorded.top_k
    trace = Router(skew=0.7).draw(*dims, np.full(12, 50), seed=1)
    write_trace(tmp_path / "trace.npz", trace)
    pool = {**POOL, "routing": {"like": "trace.npz", "of": "gpt-oss-20b"}}
    world = Scenario(written(tmp_path, pools={"chat": pool})).world("none", 1)
    shares = world.pools["chat"].routing.shares
    assert shares.shape == (1, 32, 8)
    assert np.log(shares).std(axis=2).mean() == pytest.approx(0.7, rel=0.25)
    world.ledger.close()
    pool = {**POOL, "routing": {"like": "trace.npz", "of": "deepseek-v3"}}
    with pytest.raises(FileError, match=r"trace\.npz"):
        Scenario(written(tmp_path, pools={"chat": pool})).world("none", 1)


def test_loads_of_endless_traffic_turn_from_cluster_to_cluster() -> None:
    model = ModelShape("tiny", 2, 8, 2, hidden=8, moe_intermediate=4)
    router = Router(skew=0.5, variety=2.0, shared=1.0, clusters=2, drift=1e6)
    routing = router.routing(model, turn_s=1200.0, seed=1)
    assert (len(routing.shares), routing.every_s) == (12, 100.0)
    np.testing.assert_allclose(routing.shares.sum(axis=2), 2.0)
    np.testing.assert_array_equal(routing.shares[0], routing.shares[5])
    assert abs(routing.shares[0] - routing.shares[6]).max() > 0.1
    still = router.routing(model, turn_s=0.0, seed=1)
    np.testing.assert_allclose(still.shares[0], routing.shares[[0, 6]].mean(axis=0))


def test_what_tokens_use_together_is_what_drawn_ones_do() -> None:
    """Counts of 60,000 drawn tokens scatter about it; independence is far off."""
    model = ModelShape("tiny", LAYERS, EXPERTS, TOP_K, hidden=8, moe_intermediate=4)
    router = replace(ALL, drift=0.0)
    drawn = of_trace(router.draw(LAYERS, EXPERTS, TOP_K, np.ones(60_000, np.int64), seed=5))
    told = router.routing(model, 0.0, 5, together=True).profile(0, TOP_K)
    for name in ("load", "coactivation", "transitions"):
        one, other = (getattr(profile, name) / profile.tokens for profile in (drawn, told))
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.98, name
        assert one.sum() == pytest.approx(other.sum(), rel=1e-3), name
    alone = drawn.load[:, :, None] * drawn.load[:, None, :]
    assert drawn.coactivation is not None
    assert np.corrcoef(alone.ravel(), drawn.coactivation.ravel())[0, 1] < 0.9


def test_chances_of_a_race_add_up_to_top_k() -> None:
    """Of equal odds, all alike; of one far ahead, that one for sure."""
    odds = np.array([[0, 0, 0, 0], [0, -30, -30, -30]], np.float32)
    np.testing.assert_allclose(chances(odds, 2)[0], 0.5, atol=1e-6)
    np.testing.assert_allclose(chances(odds, 2)[1], [1, 1 / 3, 1 / 3, 1 / 3], atol=1e-3)


def test_a_recorded_trace_keeps_what_its_tokens_use_together() -> None:
    trace = ALL.draw(LAYERS, EXPERTS, TOP_K, LENS, seed=5)
    routing, recorded = recorded_routing(trace, 1, 0.0, together=True), of_trace(trace)
    assert routing.affinity is not None
    for part, name in zip(routing.affinity.counts(0, recorded.tokens), PAIRS, strict=True):
        np.testing.assert_allclose(part, getattr(recorded, name), atol=1.0)


def test_a_pool_whose_tokens_travel_tells_its_controller_what_they_use_together(
    tmp_path: Path,
) -> None:
    """With counts that Profile takes; under allgather nobody does."""
    routing = {"router": {"skew": 0.6, "together": 3.0, "factors": 2.0}}
    for dispatch in ("dedup", "allgather"):
        pool = {**POOL, "routing": routing, "policy": {**POOL["policy"], "dispatch": dispatch}}
        world = Scenario(written(tmp_path, pools={"chat": pool})).world("eplb", 1)
        model = world.pools["chat"]
        fleet = Fleet(lambda _: 60.0, VirtualClock())
        model.advance(60.0)
        model.push(fleet, 60.0)
        group = fleet.pools["chat"].group()
        assert group is not None
        profile = group.profile("decode", 0.0)
        assert profile is not None
        assert (profile.coactivation is not None) is (dispatch == "dedup")
        world.ledger.close()
