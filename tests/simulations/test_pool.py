"""The model of a pool, on a few requests, and rules that look after it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.size_settings import Autoscale
from placer.errors import FileError
from simulations.arrival_files import read_arrivals
from simulations.arrivals import Arrivals, poisson
from simulations.clairvoyant import Clairvoyant
from simulations.pool import CONTEXT, PoolModel, Rank
from simulations.run import simulate
from simulations.serving import Serving

# A step takes a second, and another for each ten prompt tokens or output tokens of a rank.
SLOW = Rank(1.0, 0.1, 0.1, token_budget=20, kv_tokens=100, switch_s=5.0)
SIZES = Autoscale(ttft_s=3.0, tpot_s=0.055, least=2, most=8, max_gpus=8, cooldown_s=2.0)


def some(*requests: tuple[float, int, int]) -> Arrivals:
    """When each comes, its prompt and its output."""
    at_s, prompt, output = zip(*requests, strict=True)
    return Arrivals(np.array(at_s, dtype=float), np.array(prompt), np.array(output))


def test_a_request_is_prefilled_in_steps_of_the_budget_then_decoded_one_by_one() -> None:
    """30 tokens: 20 in 3 s, 10 in 2 s with the first token; the second takes 1.1 s."""
    pool = PoolModel(some((2.0, 30, 2)), 1, SLOW)
    pool.advance(100.0)
    assert (pool.first_s[0], pool.last_s[0]) == pytest.approx((7.0, 8.1))
    assert (pool.prompt_tokens, pool.output_tokens) == (30, 2)
    assert pool.busy_s == pytest.approx(6.1)
    assert pool.attainment(5.0, 1.1 + 1e-9) == 1.0
    assert pool.attainment(4.9, 2.0) == pool.attainment(5.0, 1.0) == 0.0


def test_on_one_rank_it_is_what_engines_are_rank_by_rank() -> None:
    """But that a token reads the context that it has, not always as much."""
    arrivals = poisson(0.1, 300.0, prompt=30, output=9, seed=1)
    pool, serving = PoolModel(arrivals, 1, SLOW), Serving(arrivals, 1, 1, 1, SLOW.speeds)
    pool.advance(1000.0)
    serving.serve_all()
    assert serving.state.first_s == pytest.approx(pool.first_s)
    assert serving.state.last_s == pytest.approx(pool.last_s)
    reads = replace(SLOW, output_token_s=0.2).speeds
    assert reads.kv_token_s * CONTEXT == pytest.approx(0.1)


def test_two_ranks_have_twice_the_budget_and_share_the_work() -> None:
    """All 30 tokens in one step of 1 + 3 / 2 s."""
    pool = PoolModel(some((2.0, 30, 1)), 2, SLOW)
    pool.advance(100.0)
    assert pool.first_s[0] == pytest.approx(4.5)


def test_requests_wait_for_those_before_them_and_for_room_in_the_kv() -> None:
    pool = PoolModel(some((0.0, 20, 40), (0.0, 20, 40)), 1, SLOW)
    pool.advance(2.0)
    assert (pool.running, pool.waiting, pool.kv_use) == (1, 1, 0.6)
    pool.advance(500.0)
    assert pool.first_s[1] > pool.last_s[0]
    assert (pool.finished, pool.kv_use) == (2, 0.0)


def test_a_change_of_width_happens_at_a_step_which_takes_longer() -> None:
    pool = PoolModel(some((0.0, 20, 3)), 1, SLOW)
    pool.advance(1.0)  # the step ends at 3 s
    pool.resize(2)
    pool.advance(100.0)
    assert pool.last_s[0] == pytest.approx(3.0 + (1.05 + 5.0) + 1.05)


ARRIVALS = st.lists(st.tuples(st.floats(0, 60), st.integers(1, 3000), st.integers(1, 60)),
                    min_size=1, max_size=40)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(ARRIVALS, st.sampled_from(["quantile", "threshold", "horizontal"]), st.floats(0, 10))
def test_no_request_is_lost_whatever_changes_and_the_same_comes_of_the_same(
    requests: list[tuple[float, int, int]], rule: str, delay_s: float
) -> None:
    arrivals = some(*sorted(requests))
    sizes = replace(SIZES, policy=rule)  # type: ignore[arg-type]
    outcome = simulate(arrivals, sizes, delay_s)
    assert outcome == simulate(arrivals, sizes, delay_s)
    assert outcome.finished == len(arrivals)
    assert SIZES.least <= outcome.widest <= SIZES.most
    assert outcome.rank_s <= SIZES.most * arrivals.seconds + 1e-6


def test_every_token_is_computed_once_over_changes_of_width() -> None:
    arrivals = poisson(20.0, 30.0, prompt=400, output=7, seed=1)
    pool = PoolModel(arrivals, 2, Rank())
    for second in range(200):
        pool.advance(float(second))
        pool.resize(2 + second % 5)
    assert pool.prompt_tokens == arrivals.prompt.sum()
    assert pool.output_tokens == arrivals.output.sum()
    assert pool.ttft.total == len(arrivals)
    assert pool.gaps.total == (arrivals.output - 1).sum()
    assert (pool.running, pool.waiting, pool.kv_use) == (0, 0, 0.0)


def test_the_oracle_is_wide_before_a_burst_comes() -> None:
    """40,000 tokens at 60 s need four ranks of 12,600 a second to be there in a second."""
    burst = some((0.0, 100, 2), *[(60.0, 4000, 2)] * 10, (90.0, 100, 2))
    aim = Clairvoyant(SIZES, ahead_s=4.0, delay_s=1.0, aim_s=1.0)
    sizes = replace(SIZES, ttft_s=1.2)
    assert simulate(burst, sizes, 1.0, decide=aim).attainment == 1.0
    assert simulate(burst, sizes, 1.0).attainment < 1.0


def test_azure_traces_are_read_from_their_first_request_on(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:05.2299600,3180,8\n"
    )
    arrivals = read_arrivals(path)
    assert arrivals.at_s.tolist() == pytest.approx([0.0, 1.25])
    assert (arrivals.prompt.tolist(), arrivals.output.tolist()) == ([4808, 3180], [10, 8])
    twice = arrivals.times(2)
    assert twice.prompt.tolist() == [4808, 4808, 3180, 3180]
    assert twice.between(1.0, 9.0).at_s.tolist() == pytest.approx([0.25, 0.25])
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="names no trace of requests"):
        read_arrivals(path)
