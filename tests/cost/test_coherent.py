"""What a profile foretells of ``coherent`` tokens, beside what becomes of each."""

import numpy as np
import pytest

from placer.arrays import FloatArray
from placer.cost.traffic import expected, measured
from placer.placement import Placement
from placer.profile import of_trace
from placer.trace import Trace
from tests.builders import a_placement

SIDE = 8  # experts of each of two kinds of tokens
KEPT = a_placement([list(range(2 * SIDE))] * 4, experts=2 * SIDE, gpus=2)
APART = a_placement([[*range(0, 2 * SIDE, 2), *range(1, 2 * SIDE, 2)]] * 4, 2 * SIDE, gpus=2)
# Each GPU has half of what the other's tokens mostly use.
TWICE = a_placement([[*range(12), *range(8, 16), *range(4)]] * 4, 2 * SIDE, gpus=2)
# As many slots on four GPUs: a kind's tokens have two GPUs with all that they mostly use.
FOUR = a_placement([[*range(8), *range(8, 16), *range(8), *range(8, 16)]] * 4, 2 * SIDE, gpus=4)


def two_kinds(astray: float = 0.2, tokens: int = 4000, layers: int = 4, top_k: int = 4) -> Trace:
    """Tokens that use experts of their own half, but for a share ``astray`` of them."""
    lots = np.random.default_rng(0)
    near = np.arange(2 * SIDE) // SIDE == (np.arange(tokens) % 2)[:, None, None]
    away = np.where(near, 0.0, np.log(astray / (1 - astray)))
    keys = lots.gumbel(size=(tokens, layers, 2 * SIDE)) + away
    ids = np.argsort(-keys, axis=2)[:, :, :top_k]
    return Trace(ids, np.full(tokens // 10, 10), 2 * SIDE)


@pytest.mark.parametrize("placement", [KEPT, APART, TWICE, FOUR])
def test_visits_to_other_gpus_are_as_foretold(placement: Placement) -> None:
    """Of a token's four experts most are where it is: experts elsewhere are of few each."""
    trace = two_kinds()
    truth, guess = (
        remote(traffic.dispatch.gpu[1:])
        for traffic in (
            measured(trace, placement, "coherent"),
            expected(of_trace(trace), placement, "coherent"),
        )
    )
    assert guess == pytest.approx(truth, rel=0.08)


def remote(flow: FloatArray) -> float:
    return float(flow.sum() - np.trace(flow, axis1=1, axis2=2).sum())
