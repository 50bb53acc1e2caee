"""What a plan wins on traffic that it has not seen."""

import numpy as np
import pytest

from placer.arrays import FloatArray
from placer.cost.outlook import experts_gain, slowest
from placer.optimizers import optimizer
from placer.placement import Placement
from placer.profile import Profile
from placer.spread import Noise
from tests.builders import a_problem, a_trace, loads

LAYERS, EXPERTS, GPUS = 40, 16, 4


def draw(rng: np.random.Generator, shape: FloatArray, tokens: int = 2000) -> Profile:
    return loads(np.array([rng.multinomial(tokens, row) for row in shape]).tolist())


def gain(seed: int, drift: float) -> tuple[float, float]:
    """(gain, noise) of planning again, as shares, when loads drifted and were drawn anew."""
    rng = np.random.default_rng(seed)
    shape, other = rng.dirichlet(np.full(EXPERTS, 2.0), (2, LAYERS))
    first = a_problem(draw(rng, shape), gpus=GPUS)
    running = optimizer("eplb")(first).placement
    now = a_problem(draw(rng, (1 - drift) * shape + drift * other), gpus=GPUS)
    found = experts_gain(now, running, optimizer("eplb")(now).placement)
    return found.seconds, found.noise_s


def test_drawing_the_same_traffic_again_wins_nothing_beyond_noise() -> None:
    for seed in range(20):
        won, noise = gain(seed, drift=0.0)
        assert won < noise


def test_a_real_drift_stands_out() -> None:
    for seed in range(20):
        won, noise = gain(seed, drift=0.3)
        assert won > noise


def test_the_slowest_of_more_gpus_is_slower() -> None:
    assert slowest(2) == 1  # of two numbers, exactly
    assert slowest(8) == pytest.approx(1.42, abs=0.02)  # the mean of the largest of 8 normals
    assert slowest(32) == pytest.approx(2.07, abs=0.02)


def test_noise_of_single_tokens_is_poissons() -> None:
    noise = loads([[30.0, 10.0]]).noise
    assert noise.covariance is None
    assert noise.variance == pytest.approx(np.array([[30, 10]]) / 40**2)


def test_sequences_that_stay_with_an_expert_are_noisier_than_tokens() -> None:
    # 20 blocks of 64 tokens, each all on expert 0 or all on expert 1.
    tokens = [[[block % 2]] for block in range(20) for _ in range(64)]
    trace = a_trace(tokens, experts=2, seq_lens=[64] * 20)
    noise = a_problem(trace).profile.noise
    assert noise.covariance is not None
    # A share of 20 coin flips: 0.25 / 20, with 19 degrees of freedom.
    assert noise.variance == pytest.approx(np.full((1, 2), 0.25 / 19))
    assert noise.covariance[0, 0, 1] == pytest.approx(-0.25 / 19 * 0.8)
    # What is one expert's gain is the other's loss: together they do not vary.
    both = Noise(noise.variance, noise.covariance / 0.8).of(
        np.array([[[0, 1]]]), np.ones((1, 1, 2))
    )
    assert both == pytest.approx(np.zeros((1, 1)), abs=1e-12)


def test_planning_from_a_sample_is_charged_for_its_noise() -> None:
    # Nothing to win: the same placement before and after costs twice the noise.
    problem = a_problem(loads([[30.0, 10.0, 30.0, 10.0]]))
    same: Placement = problem.linear
    assert experts_gain(problem, same, same).seconds < 0
