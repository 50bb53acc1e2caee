"""One or two engines of a rank or two, whose steps take a second: all can be counted by hand."""

import numpy as np
import pytest

from simulations.arrivals import Arrivals
from simulations.kernels import BEGAN, ENDED, GRID
from simulations.serving import Serving
from simulations.state import Speeds

STEP = Speeds(1.0, 0.0, 0.0, 0.0, token_budget=4, kv_tokens=100, switch_s=0.5)


def coming(*requests: tuple[float, int, int]) -> Arrivals:
    """Moment, prompt and output of each."""
    at_s, prompt, output = zip(*requests, strict=True)
    return Arrivals(np.array(at_s), np.array(prompt), np.array(output))


def serving(
    arrivals: Arrivals, engines: int = 1, ranks: int = 1, speeds: Speeds = STEP, widest: int = 0
) -> Serving:
    return Serving(arrivals, engines, ranks, widest or ranks, speeds)


def serve(here: Serving, places: list[tuple[int, int]], until: float = 100.0) -> None:
    """Each request goes to its engine and rank; those of one moment begin together."""
    last_s = 0.0
    for one, (engine, rank) in enumerate(places):
        at_s = float(here.state.at_s[one])
        if at_s > last_s:
            here.advance(at_s)
        last_s = at_s
        here.arrive(one, engine, rank, at_s)
    here.advance(until)


def test_tokens_come_a_step_each_the_first_with_the_last_of_the_prompt() -> None:
    here = serving(coming((2.0, 10, 3)))
    serve(here, [(0, 0)])
    assert here.state.first_s[0] == 5.0  # 4, 4 and 2 tokens of the prompt
    assert here.state.last_s[0] == 7.0
    assert (here.state.steps[0], here.state.busy_s[0]) == (5, 5.0)
    assert (here.state.prefilled[0], here.state.decoded[0], here.state.finished[0]) == (10, 2, 1)


def test_what_came_of_requests_is_told() -> None:
    here = serving(coming((0.0, 1, 2), (0.0, 1, 1)))
    here.arrive(0, 0, 0, 0.0)
    here.arrive(1, 0, 0, 0.0)
    assert here.advance(0.5) == []
    assert here.advance(1.0) == [[BEGAN, 0], [BEGAN, 1], [ENDED, 1]]
    assert here.advance(2.0) == [[ENDED, 0]]


def test_prompts_wait_for_their_turn_and_decoding_goes_on_beside_them() -> None:
    here = serving(coming((0.0, 4, 9), (0.0, 6, 1)))
    serve(here, [(0, 0), (0, 0)])
    assert here.state.first_s.tolist() == [1.0, 3.0]  # 3 tokens beside the first's, twice
    assert here.state.last_s[0] == 9.0


def test_a_request_waits_until_its_whole_kv_fits() -> None:
    small = STEP._replace(kv_tokens=10)
    here = serving(coming((0.0, 2, 6), (0.0, 2, 2)), speeds=small)
    serve(here, [(0, 0), (0, 0)])
    assert here.state.last_s[0] == 6.0
    assert here.state.first_s[1] == 7.0
    assert here.state.kv.tolist() == here.state.context.tolist() == [0]


def test_ranks_of_an_engine_step_together_and_wait_for_the_slowest() -> None:
    by_tokens = Speeds(0.0, 0.0, 1.0, 0.0, token_budget=8)
    here = serving(coming((0.0, 8, 1), (0.0, 2, 1)), ranks=2, speeds=by_tokens)
    serve(here, [(0, 0), (0, 1)])
    assert here.state.first_s.tolist() == [8.0, 8.0]
    apart = serving(coming((0.0, 8, 1), (0.0, 2, 1)), engines=2, speeds=by_tokens)
    serve(apart, [(0, 0), (1, 0)])
    assert apart.state.first_s.tolist() == [8.0, 2.0]


def test_experts_take_what_the_table_says_of_the_tokens_of_all_ranks() -> None:
    none = Speeds(0.0, 0.0, 0.0, 0.0, token_budget=64)
    for ranks, tokens in ((1, 1), (1, 2), (1, 3), (1, 6), (1, 32), (4, 1), (4, 6)):
        here = serving(coming((0.0, tokens, 1)), ranks=ranks, speeds=none)
        here.state.table[:] = 2.0 ** np.arange(GRID)
        serve(here, [(0, 0)])
        assert here.state.first_s[0] == tokens


def test_taking_a_request_in_is_of_the_step_that_ends_its_prompt() -> None:
    takes = Speeds(1.0, 0.0, 0.0, 0.0, token_budget=4, request_s=0.5)
    here = serving(coming((0.0, 6, 3), (0.0, 1, 1)), speeds=takes)
    serve(here, [(0, 0), (0, 0)])
    assert here.state.first_s.tolist() == [3.0, 3.0]
    assert here.state.last_s.tolist() == [5.0, 3.0]


def test_context_is_read_in_every_step() -> None:
    reads = Speeds(0.0, 0.0, 0.0, 1.0, token_budget=8)
    here = serving(coming((0.0, 3, 3)), speeds=reads)
    serve(here, [(0, 0)])
    assert here.state.last_s[0] == 3 + 4 + 5


@pytest.mark.parametrize("ranks", [1, 3])
def test_requests_go_on_through_a_change_of_width(ranks: int) -> None:
    """After the step that runs; what is half prefilled is computed again if its rank goes."""
    here = serving(coming((0.0, 1, 9), (0.0, 1, 9), (0.0, 6, 2)), ranks=2, widest=3)
    for one, rank in ((0, 0), (1, 1), (2, 1)):
        here.arrive(one, 0, rank, 0.0)
    here.advance(1.0)
    here.state.wanted[0] = ranks
    here.advance(100.0)
    assert np.isfinite(here.state.last_s).all()
    assert here.state.last_s[:2].tolist() == [9.5, 9.5]  # half a second longer
    assert here.state.kv.tolist() == here.state.context.tolist() == [0, 0, 0]
    assert here.state.finished[0] == 3


def test_what_an_engine_had_begins_again_elsewhere() -> None:
    here = serving(coming((0.0, 1, 9), (0.0, 8, 9)), engines=2)
    for one in (0, 1):
        here.arrive(one, 0, 0, 0.0)
    here.advance(2.0)
    assert here.again(0) == [0, 1]
    assert here.cut == 1  # the other had not begun to answer
    for one in (0, 1):
        here.arrive(one, 1, 0, 2.0)
    here.advance(100.0)
    assert here.state.first_s.tolist() == [3.0, 5.0]
    assert here.state.finished.tolist() == [0, 2]


def test_without_a_scheduler_each_goes_where_the_fewest_are() -> None:
    here = Serving(coming(*[(0.0, 1, 5)] * 9), 2, 2, 2, STEP, every=3)
    asked, at = [], 0
    while at < 9:
        at, _ = here.serve_many(at, 9, 50.0)
        if at < 9:
            asked.append(at)
            here.arrive(at, 0, 0, 0.0)
            at += 1
    assert asked == [0, 3, 6]
    ranks, counts = np.unique(here.state.rank, return_counts=True)
    assert (ranks.tolist(), counts.tolist()) == ([0, 1, 2, 3], [3, 2, 2, 2])


@pytest.mark.parametrize("kv_token_s", [0.0, 1e-4])
def test_many_steps_in_one_formula_are_what_they_are_one_by_one(kv_token_s: float) -> None:
    """On a rank each, none is slower before the middle and another after."""
    speeds = Speeds(0.01, 0.0, 1e-3, kv_token_s, token_budget=16, kv_tokens=400, switch_s=0.5)
    rng = np.random.default_rng(3)
    at_s = np.sort(rng.random(60) * 20)
    come = Arrivals(at_s, rng.integers(1, 40, 60), rng.integers(1, 60, 60))
    one_by_one, together = (Serving(come, 2, 1, 1, speeds, every) for every in (1, 100))
    for request in range(60):
        one_by_one.advance(float(at_s[request]))
        one_by_one.place(request, float(at_s[request]))
    one_by_one.advance(100.0)
    together.place(0, float(at_s[0]))
    for until in (7.3, 7.4, 100.0):
        last = int(np.searchsorted(at_s, until))
        at = int((together.state.rank >= 0).sum())
        together.serve_many(at, last, until)
    for name in ("first_s", "last_s", "steps", "busy_s", "decoded", "prefilled", "finished"):
        these, those = (getattr(here.state, name) for here in (one_by_one, together))
        np.testing.assert_allclose(these, those, rtol=1e-9, err_msg=name)
    assert together.state.finished.sum() == 60
    assert together.state.gaps.sum() == one_by_one.state.gaps.sum()  # each of the mean step


def test_what_is_changed_is_felt_at_the_next_step() -> None:
    """Also if many steps were to be computed together."""
    here = Serving(coming((0.0, 1, 50), (0.5, 1, 3)), 1, 1, 1, STEP, every=9)
    here.place(0, 0.0)
    here.advance(4.5)
    here.state.slow[0] = 2.0
    here.place(1, 4.5)
    here.advance(100.0)
    assert here.state.first_s.tolist() == [1.0, 7.0]  # 5 steps of a second, one of two
    assert here.state.last_s.tolist() == [5.0 + 45 * 2, 11.0]


def test_metrics_are_an_engine_s_own() -> None:
    here = serving(coming((0.0, 4, 3), (0.0, 4, 3)), engines=2)
    here.arrive(0, 1, 0, 0.0)
    here.arrive(1, 1, 0, 0.0)
    here.advance(1.0)
    found = here.samples(1)
    assert (found.running, found.waiting, found.prompt_tokens) == (1, 1, 4 + 3)
    assert found.ttft.total == 1
    assert here.samples(0).running == 0
