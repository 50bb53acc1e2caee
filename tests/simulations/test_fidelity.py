"""The engine model beside engines: what is fitted, and what is compared."""

import numpy as np
import pytest

from placer.placement import Placement, linear
from simulations.arrivals import Arrivals, poisson
from simulations.fidelity import local
from simulations.fidelity.model import Constants, Engine, fitted, predicted
from simulations.fidelity.seen import Seen, compared, ratio
from simulations.step_seconds import step_seconds
from tests.builders import a_model
from tests.controller.local_engine.tiny_engine import MODEL

SHAPE = a_model(layers=4, experts=8, top_k=2)
EVEN = linear(4, 8, 8, 2)
LOAD = np.tile(np.arange(1.0, 9.0), (4, 1))
ENGINE = Engine(SHAPE, budget=32, prompts=16)
TRUE = Constants(overhead_s=5e-3, dense_token_s=2e-4, kv_token_s=1e-6, expert_token_s=5e-5)


def arrivals(seed: int) -> Arrivals:
    lots = np.random.default_rng(seed)
    found = poisson(8.0, 10.0, 0, 0, seed)
    sizes = lots.integers(1, 60, (2, len(found)))
    return Arrivals(found.at_s, *sizes)


def test_an_engine_that_obeys_the_model_is_predicted_on_what_it_was_not_fitted_on() -> None:
    known = predicted(ENGINE, TRUE, EVEN, arrivals(1), LOAD)
    constants = fitted(ENGINE, EVEN, known)
    hot = Placement(np.tile([7, 6, 5, 4, 3, 2, 1, 0], (4, 1)), 8, 2)
    for placement, seed in ((EVEN, 2), (hot, 2), (linear(4, 8, 8, 1), 3)):
        true = predicted(ENGINE, TRUE, placement, arrivals(seed), LOAD)
        ours = predicted(ENGINE, constants, placement, arrivals(seed), LOAD)
        for row in compared("", ours, [true, true]):
            assert row.error == pytest.approx(0.0, abs=0.02), row


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
    """One token that uses one of two experts, each on a rank of its own: the mean is half a token
    each, and in truth one of the two computes all of it."""
    from simulations.fidelity.model import _problem

    shape = a_model(layers=1, experts=2, top_k=1)
    one_each = linear(1, 2, 2, 2)
    problem = _problem(shape, TRUE, one_each, np.ones((1, 2)))
    few, many = step_seconds(problem, one_each, (1, 4096)) / (1, 4096)
    assert many == pytest.approx(TRUE.expert_token_s, rel=0.02)
    # Two tokens, one of each rank: both choose the same expert half of the time.
    assert few == pytest.approx(1.5 * TRUE.expert_token_s, rel=0.1)


@pytest.mark.slow
def test_a_real_engine_is_seen_request_by_request() -> None:
    few = Arrivals(np.array([0.0, 0.05, 0.1]), np.array([3, 40, 1]), np.array([4, 2, 1]))
    table = np.tile(np.arange(16)[::-1], (6, 1))
    found = local.serve(MODEL, Placement(table, 16, 2), few, seed=0)
    assert (few.at_s < found.first_s).all()
    assert (found.first_s <= found.last_s).all()
    assert (found.first_s < found.last_s).tolist() == [True, True, False]
    tokens = few.prompt.sum() + (few.output - 1).sum()
    assert found.load.sum(axis=1).tolist() == [tokens * 2] * 6
    assert found.rank_load.sum() == pytest.approx(found.load.sum())
