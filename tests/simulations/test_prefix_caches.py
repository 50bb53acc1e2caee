"""One rank, blocks of four tokens, requests of which each step computes four tokens: what is cached
can be counted by hand."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from placer.errors import FileError
from simulations.arrival_files import read_arrivals
from simulations.arrivals import Arrivals, Prefixes, poisson, with_prefixes
from simulations.caches import IDLE
from simulations.outcome import simulate
from simulations.scenario import Scenario
from tests.simulations.test_scenarios import POOL, written
from tests.simulations.test_serving import STEP, coming, serve, serving

BLOCK = 4


def known(arrivals: Arrivals, *chains: tuple[int, ...]) -> Arrivals:
    """The blocks that each prompt begins with."""
    begins = np.concatenate([[0], np.cumsum([len(one) for one in chains])])
    flat = np.array([block for one in chains for block in one], dtype=np.int64)
    return replace(arrivals, prefixes=Prefixes(BLOCK, flat, begins))


def hits(room: int, *chains: tuple[int, ...]) -> int:
    """Cached tokens of requests of six prompt tokens and an answer of one, one after another."""
    come = coming(*((10.0 * at, 6, 1) for at in range(len(chains))))
    here = serving(known(come, *chains), speeds=STEP._replace(kv_tokens=room))
    serve(here, [(0, 0)] * len(chains), until=1e3)
    assert here.state.kv[0] == 0
    assert here.state.line[0, IDLE] <= room
    return int(here.state.hits[0])


def test_what_is_cached_is_not_computed_again() -> None:
    here = serving(known(coming((0.0, 6, 1), (10.0, 6, 1)), (0,), (0,)))
    serve(here, [(0, 0), (0, 0)])
    assert here.state.first_s.tolist() == [2.0, 11.0]  # 4 and 2 tokens; then only the other 2
    assert (here.state.hits[0], here.state.prefilled[0]) == (4, 8)
    assert here.state.kv[0] == 0


def test_the_last_token_is_always_computed() -> None:
    here = serving(known(coming((0.0, 4, 1), (10.0, 4, 1)), (0,), (0,)))
    serve(here, [(0, 0), (0, 0)])
    assert here.state.hits[0] == 0


def test_the_least_recently_used_block_goes_first() -> None:
    """Seven tokens of the second request need room: of the first, its own three tokens go before
    its block of four."""
    assert hits(11, (0,), (1,), (0,)) == 4
    assert hits(10, (0,), (1,), (0,)) == 0
    assert hits(17, (0,), (1,), (0,), (2,), (0,)) == 4 + 4
    assert hits(17, (0,), (1,), (0,), (2,), (1,)) == 4


def test_running_requests_have_a_common_block_once() -> None:
    here = serving(known(coming((0.0, 6, 9), (0.0, 6, 9)), (0,), (0,)))
    serve(here, [(0, 0), (0, 0)], until=6.0)
    assert here.state.hits[0] == 4
    assert here.state.kv[0] == 4 + 2 * (2 + 9)
    here.advance(100.0)
    assert (here.state.kv[0], here.state.line[0, IDLE]) == (0, 4 + 2 * (2 + 9))


def test_a_common_block_lets_a_request_begin_that_did_not_fit() -> None:
    """Fifteen tokens each: two have room for 26 of them only with the block in common."""
    for chains, first_s in ((((0,), (0,)), 2.0), (((0,), (1,)), 12.0)):
        come = known(coming((0.0, 6, 9), (0.0, 6, 9)), *chains)
        here = serving(come, speeds=STEP._replace(kv_tokens=26))
        serve(here, [(0, 0), (0, 0)])
        assert here.state.first_s[1] == first_s


def test_an_engine_that_is_lost_has_nothing_cached() -> None:
    here = serving(known(coming((0.0, 6, 1), (10.0, 6, 1)), (0,), (0,)))
    here.arrive(0, 0, 0, 0.0)
    here.advance(10.0)
    assert here.again(0) == []
    here.arrive(1, 0, 0, 10.0)
    here.advance(20.0)
    assert (here.state.hits[0], here.state.kv[0]) == (0, 0)


def test_a_request_goes_to_another_rank_with_its_blocks() -> None:
    come = known(coming((0.0, 6, 9), (0.0, 6, 9), (8.0, 6, 1)), (0,), (1,), (1,))
    here = serving(come, ranks=2)
    here.arrive(0, 0, 0, 0.0)
    here.arrive(1, 0, 1, 0.0)
    here.advance(4.0)
    here.state.wanted[0] = 1
    here.advance(8.0)
    assert here.state.kv[:2].tolist() == [2 * 15, 0]
    here.arrive(2, 0, 0, 8.0)
    here.advance(100.0)
    assert here.state.hits[0] == 4
    assert here.state.kv[0] == 0


@pytest.mark.parametrize("seed", range(8))
def test_hits_are_those_of_a_plain_list(seed: int) -> None:
    """One request after another, each of a few blocks of a tree of prefixes."""
    rng = np.random.default_rng(seed)
    room, chains, prompts = 60, [], []
    for _ in range(60):
        depth = int(rng.integers(0, 4))
        branch = rng.integers(0, 2, depth).tolist()
        chains.append(tuple(accumulate(branch, lambda before, turn: 2 * before + turn + 1)))
        prompts.append(depth * BLOCK + int(rng.integers(1, 8)))
    come = known(coming(*((40.0 * at, one, 2) for at, one in enumerate(prompts))), *chains)
    here = serving(come, speeds=STEP._replace(kv_tokens=room))
    serve(here, [(0, 0)] * len(chains), until=1e4)
    assert here.state.hits[0] == plain(room, chains, prompts)
    assert here.state.hits[0] > 0


def plain(room: int, chains: list[tuple[int, ...]], prompts: list[int]) -> int:
    line: list[Any] = []  # least recently used first, a token's worth each
    found = 0
    for chain, prompt in zip(chains, prompts, strict=True):
        there = 0
        while there < min(len(chain), (prompt - 1) // BLOCK) and chain[there] in line:
            there += 1
        found += there * BLOCK
        line = [one for one in line if one not in chain]
        while len(line) + prompt + 2 > room:
            first = line[0]
            line = line[1:] if first is None else [one for one in line if one != first]
        line += [None] * (prompt + 2 - BLOCK * len(chain))
        for block in reversed(chain):
            line += [block] * BLOCK
    return found


def test_mooncake_traces_say_what_prompts_begin_with(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    row = '{"timestamp": %d, "input_length": %d, "output_length": 5, "hash_ids": %s}\n'
    path.write_text(row % (0, 1100, [7, 9, 8]) + row % (1000, 600, [7, 4]) + row % (2000, 9, [3]))
    found = read_arrivals(path)
    assert found.prefixes is not None
    assert found.prefixes.block_tokens == 512
    assert [found.prefixes.of(one) for one in range(3)] == [(0, 1), (0,), ()]  # the full ones
    twice = found.between(1.0, 9.0).times(2).prefixes
    assert twice is not None
    assert [twice.of(one) for one in range(4)] == [(0,), (0,), (), ()]
    for wrong in ('"x"', "[0.5, 1]", "[1, -1]", f"[1, {10**400}]"):
        path.write_text(row % (0, 1100, wrong))
        with pytest.raises(FileError, match="line 1: hash_ids are no list"):
            read_arrivals(path)


def test_prefixes_are_drawn_by_their_popularity() -> None:
    plain = poisson(per_s=20, seconds=1000, prompt=100, output=10, seed=0)
    found = with_prefixes(plain, count=2, tokens=50, share=0.6, zipf=1.0, longest=1000, seed=1)
    assert found.prefixes is not None
    chains = [found.prefixes.of(one) for one in range(len(found))]
    assert chains.count(()) == pytest.approx(0.4 * len(found), rel=0.03)
    assert chains.count((0,)) == pytest.approx(0.4 * len(found), rel=0.03)  # twice as popular
    assert {int(one) for one in found.prompt} == {100, 150}
    short = with_prefixes(plain, count=2, tokens=50, share=1.0, zipf=0.0, longest=60, seed=1)
    assert short.prompt.max() == 50  # cut, and nothing is left to compute after the prefix
    assert short.prefixes is not None
    assert not len(short.prefixes.blocks)


def test_the_scheduler_sends_requests_to_what_is_cached(tmp_path: Path) -> None:
    """Of 64 prefixes a rank has room for a few: by load alone, requests rarely find theirs."""
    prefixes = {"count": 64, "tokens": 2000, "share": 1.0, "zipf": 0.0}
    arrivals = {"per_s": 8, "prompt": 100, "output": 20, "prefixes": prefixes}
    pool = {**POOL, "arrivals": arrivals, "speeds": {"kv_tokens": 30_000}}
    text = {"pools": {"chat": pool}, "controllers": {"none": None}, "seconds": 200}
    ours = simulate(Scenario(written(tmp_path, **text)), "none", 1).pools["chat"]
    by_load = simulate(Scenario(written(tmp_path, scheduled=1000, **text)), "none", 1).pools["chat"]
    assert ours.requests == by_load.requests
    assert ours.cached > by_load.cached + 0.2
    assert ours.ttft_s["p50"] < by_load.ttft_s["p50"]
    del arrivals["prefixes"]
    plain = simulate(Scenario(written(tmp_path, **text)), "none", 1).pools["chat"]
    assert plain.cached == 0


def test_a_scenario_says_what_it_cannot_draw(tmp_path: Path) -> None:
    arrivals = {"per_s": 8, "prefixes": {"share": 2}}
    path = written(tmp_path, pools={"chat": {**POOL, "arrivals": arrivals}})
    assert yaml.safe_load(path.read_text())
    with pytest.raises(FileError, match="prefixes"):
        Scenario(path)
