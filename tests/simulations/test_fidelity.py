"""The engine model beside engines: what is fitted, and what is compared."""

import os
from dataclasses import asdict

import numpy as np
import pytest

from placer.cost.compute import activation_seconds
from placer.placement import Placement, linear
from placer.problem import Problem
from placer.profile import Profile
from placer.topology import Gpu, Link, Topology
from simulations.arrivals import Arrivals
from simulations.fidelity import local
from simulations.fidelity.model import Constants, Engine, fitted, predicted
from simulations.fidelity.seen import Seen, Steps, compared, joined, ratio
from simulations.step_seconds import _chosen, step_seconds
from tests.builders import a_model
from tests.controller.local_engine.tiny_engine import MODEL, PROMPTS, generate, kill

SHAPE = a_model(layers=4, experts=8, top_k=2)
EVEN = linear(4, 8, 8, 2)
LOAD = np.tile(np.arange(1.0, 9.0), (4, 1))
ENGINE = Engine(SHAPE, budget=32, prompts=16)
TRUE = Constants(overhead_s=5e-3, token_s=2e-4, request_s=2e-3, expert_s=5e-5, link_s=1e-4)


def made() -> Steps:
    """By an engine that obeys the model, on a host whose pace is another in each step."""
    lots = np.random.default_rng(0)
    tokens = lots.integers(0, 16, (500, 2))
    begun = np.repeat(lots.integers(0, 2, (500, 1)), 2, axis=1)
    experts = lots.integers(0, 5, (500, 4, 2)).astype(float)
    own_s = TRUE.token_s * tokens + TRUE.expert_s * experts.sum(axis=1)
    slowest_s = TRUE.token_s * tokens.max(axis=1) + TRUE.expert_s * experts.max(axis=2).sum(axis=1)
    ranks_s = slowest_s + 2 * 4 * TRUE.link_s
    seconds = TRUE.overhead_s + lots.normal(0, 3e-4, 500) + TRUE.request_s * begun[:, 0] + ranks_s
    return Steps(seconds, tokens, experts, ranks_s[:, None] - own_s, begun)


def test_constants_of_an_engine_that_obeys_the_model_are_found() -> None:
    nobody = Arrivals(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    found = fitted(ENGINE, Seen(nobody, np.zeros(0), np.zeros(0), LOAD, LOAD, made()))
    assert asdict(found) == pytest.approx(asdict(TRUE), rel=0.05)


def test_a_lone_token_takes_what_the_model_says_of_one_rank_and_of_two() -> None:
    """Two experts a layer; of two ranks the busier has both, or one of them."""
    alone = Arrivals(np.array([0.0]), np.array([1]), np.array([1]))
    token_s = TRUE.overhead_s + TRUE.token_s + TRUE.request_s
    one, two = (
        predicted(ENGINE, TRUE, linear(4, 8, 8, ranks), alone, LOAD).first_s[0] - token_s
        for ranks in (1, 2)
    )
    assert one == pytest.approx(4 * 2 * TRUE.expert_s)
    links_s = 2 * 4 * TRUE.link_s
    assert links_s + 4 * 1.3 * TRUE.expert_s < two < links_s + 4 * 1.8 * TRUE.expert_s


def seen(first_s: float, tpot_s: float, rank_load: tuple[float, float]) -> Seen:
    """Two requests of three tokens each."""
    asked = Arrivals(np.array([0.0, 1.0]), np.array([5, 5]), np.array([3, 3]))
    first = asked.at_s + first_s
    return Seen(asked, first, first + 2 * tpot_s, LOAD, np.array([rank_load] * 4))


def test_errors_are_of_means_and_count_against_what_two_engines_differ_by() -> None:
    runs = [seen(0.1, 0.010, (3.0, 1.0)), seen(0.1, 0.012, (3.0, 1.0))]
    rows = {row.what: row for row in compared("x", seen(0.1, 0.012, (1.0, 1.0)), runs)}
    tpot = rows["x: TPOT"]
    assert [tpot.predicted, tpot.measured] == pytest.approx([12, 11])
    assert tpot.repeated == pytest.approx(2 / 11)
    assert tpot.is_within  # 9% off, but so are they
    assert rows["x: TTFT"].error == pytest.approx(0)
    assert rows["x: latency"].measured == pytest.approx(122)
    loads = rows["x: busiest rank's load"]
    assert (loads.predicted, loads.measured, loads.is_within) == (1.0, 1.5, False)
    assert tpot.ks == (1.0, 1.0)


def test_a_ratio_is_of_the_steps_of_engines_that_took_turns() -> None:
    slow, fast = seen(0.1, 0.02, (1, 1)), seen(0.1, 0.01, (1, 1))
    found = ratio("", (slow, fast), ([slow, slow], [fast, fast]))
    assert (found.predicted, found.measured, found.repeated) == (2.0, 2.0, 0.0)


def test_a_step_of_few_tokens_takes_longer_than_one_of_the_mean() -> None:
    """Tokens that use one of two experts, each on a rank of its own."""
    shape = a_model(layers=1, experts=2, top_k=1)
    load, one_each = np.ones((1, 2)), linear(1, 2, 2, 2)
    free, gpu = Link(1e24, 0.0), Gpu(1e12, 1e12, 2**40, 1e24)
    profile = Profile(load, top_k=1, tokens=2.0, sequences=0, sampled=True)
    problem = Problem(shape, Topology("two", 2, 1, gpu, free, free), profile, slots=2)
    token_s = activation_seconds(problem)
    one, few, many = step_seconds(problem, one_each, (1, 2, 8192))
    assert many == pytest.approx(4096 * token_s, rel=0.02)
    # Two tokens choose the same expert half of the time.
    assert few == pytest.approx(1.5 * token_s, rel=0.1)
    assert one == pytest.approx(token_s)  # somebody computes it


def test_a_token_goes_to_different_experts_as_often_as_they_are_used() -> None:
    shares = np.array([[0.9, 0.6, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]])
    found = _chosen(np.random.default_rng(0), shares, 4000)
    assert set(found.sum(axis=2).ravel()) == {2}
    np.testing.assert_allclose(found.mean(axis=0), shares, atol=0.03)


@pytest.mark.slow
def test_a_real_engine_is_seen_request_by_request_and_step_by_step() -> None:
    few = Arrivals(np.array([0.0, 0.05, 0.1]), np.array([3, 40, 1]), np.array([4, 2, 1]))
    table = np.tile(np.arange(16)[::-1], (6, 1))
    with local.Server(MODEL, Placement(table, 16, 2)) as server:
        first, found = (server.serve(few, seed) for seed in (1, 0))
    assert (few.at_s < found.first_s).all()
    assert (found.first_s <= found.last_s).all()
    assert (found.first_s < found.last_s).tolist() == [True, True, False]
    tokens = few.prompt.sum() + (few.output - 1).sum()
    assert found.load.sum(axis=1).tolist() == [tokens * 2] * 6
    assert found.rank_load.sum() == pytest.approx(found.load.sum())
    steps = found.steps
    assert steps is not None
    assert steps.tokens.sum() == tokens
    assert (steps.seconds > steps.waited_s.max(axis=1)).all()
    assert steps.active.sum(axis=2).min() >= 2  # of each layer, whatever the step
    assert len(joined([first, found]).first_s) == 6


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a core for each rank")
def test_ranks_have_cores_of_their_own_and_wait_for_no_dead_one() -> None:
    with local.Watched(MODEL, linear(6, 16, 16, 2)) as engine:
        one, other = (os.sched_getaffinity(pid) for pid in engine.pids())
        assert len(one) == len(other) == 1
        assert one != other
        undisturbed = generate(engine, PROMPTS[:2], 40)
        requests = [engine.submit(prompt, 40) for prompt in PROMPTS[:2]]
        next(iter(requests[0]))
        kill(engine.pids()[1])
        assert [request.tokens() for request in requests] == undisturbed
        assert engine.status.restarts == 1
