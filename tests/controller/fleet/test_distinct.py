"""Distinct experts of a step, against all steps that there can be."""

from itertools import combinations, product
from statistics import mean

import numpy as np
import pytest

from controller.fleet.distinct import FEWEST, LARGEST, at_once, distinct
from controller.fleet.pools import WorkerId
from controller.fleet.traces import Request
from controller.fleet.workers import Fleet
from placer.pace import Pace
from placer.tables import factors
from placer.virtual_clock import VirtualClock
from tests.controller.tiny_pool import POOL, a_delta, a_registration, at, only

SELDOM = [1, 2, 4, 8, 16]  # that experts are used
ROWS = [[30, 10, 10, 10], [30, 10, 10, 10]]  # of 60 tokens


def drawn(seed: int, requests: int = FEWEST, layers: int = 2) -> list[Request]:
    """1 to 3 tokens each, top-2 of 5 experts."""
    lots = np.random.default_rng(seed)
    sizes = [(int(tokens), layers, 5) for tokens in lots.integers(1, 4, requests)]
    ids = [np.argsort(lots.random(size) * SELDOM)[..., :2] for size in sizes]
    return [Request("decode", 5, one) for one in ids]


def plainly(requests: list[Request], size: int, layer: int) -> float:
    """Of all sets of so many requests, and all choices of a token of each."""
    return mean(
        mean(
            len({int(id) for token in step for id in token[layer]})
            for step in product(*(one.expert_ids for one in them))
        )
        for them in combinations(requests, size)
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_it_is_the_mean_of_all_steps(size: int) -> None:
    requests = drawn(size)
    found = distinct([requests], size)
    assert found is not None
    assert found[0] == pytest.approx(mean(plainly(requests, size, layer) for layer in (0, 1)))


def test_engines_count_by_their_requests_and_those_with_few_are_left_out() -> None:
    one, two = drawn(1), drawn(2, 2 * FEWEST)
    alone = [distinct([them], 2) for them in (one, two)]
    both = distinct([one, two, drawn(3, FEWEST - 1)], 2)
    assert both is not None
    assert alone[0] is not None
    assert alone[1] is not None
    assert both[0] == pytest.approx((alone[0][0] + 2 * alone[1][0]) / 3)
    assert distinct([drawn(3, FEWEST - 1)], 2) is None


def test_requests_that_are_alike_leave_no_doubt_and_others_do() -> None:
    alike = distinct([[drawn(1, 1)[0]] * FEWEST], LARGEST)
    assert alike is not None
    assert alike[1] == pytest.approx(0.0)
    found = distinct([drawn(1)], LARGEST)
    assert found is not None
    assert found[1] > 0


def test_the_error_is_how_far_samples_differ() -> None:
    """A hundred samples of 60 requests of the same kind: their spread, and what each says of it."""
    found = [distinct([drawn(seed, 60)], 3) for seed in range(100)]
    means, errors = zip(*[one for one in found if one is not None], strict=True)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.2)


def test_of_many_layers_some_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = drawn(1, layers=4)
    monkeypatch.setattr(factors, "MOST_CELLS", 2 * 5)  # two layers of five experts
    found = distinct([requests], 2)
    assert found is not None
    assert found[0] == pytest.approx(mean(plainly(requests, 2, layer) for layer in (0, 2)))


def test_an_engine_decodes_the_tokens_of_all_its_ranks_at_once() -> None:
    fleet = Fleet(lambda _: 60.0, VirtualClock())
    for engine in ("e0", "e1"):
        for worker in ("w0", "w1"):
            at(fleet, 0.0).register(a_registration(engine=engine, worker=worker))
    assert at_once(only(fleet.pool(POOL))) == 0
    for engine in ("e0", "e1"):
        for worker in ("w0", "w1"):
            paces = {"decode": Pace(4, 1.0, 1.0), "prefill": Pace(2, 1.0, 1.0)}
            id = WorkerId(POOL, engine, worker, 1)
            at(fleet, 1.0).push(id, 1, [a_delta(ROWS)], paces)
    # 60 tokens in 6 steps, on each of two ranks.
    assert at_once(only(fleet.pool(POOL))) == 20
