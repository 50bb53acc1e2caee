"""Small scenarios: what they say, what is wrong with them, and that chance is a seed's."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller.fleet.observed import same_experts
from placer.errors import FileError
from placer.model import preset
from simulations.arrival_files import read_arrivals
from simulations.arrivals import diurnal
from simulations.outcome import compare, form_errors, simulate
from simulations.routing import drawn, limited, of_trace
from simulations.scenario import Scenario
from tests.builders import a_trace

SHIPPED = sorted((Path(__file__).parents[2] / "simulations" / "scenarios").glob("*.yaml"))
POOL: dict[str, Any] = {
    "model": "mixtral-8x7b", "engines": 2, "ranks": 4, "slots": 12,
    "arrivals": {"per_s": 2, "prompt": 400, "output": 60},
    "routing": {"skew": 1.0, "domains": 2, "turn_s": 600},
    "policy": {
        "phase": "decode", "max_moved": 1.0, "confirmations": 1, "cooldown_s": 30,
        "window_s": 60, "least_tokens": 500,
    },
}  # fmt: skip
TINY: dict[str, Any] = {
    "seconds": 300,
    "every_s": 30,
    "pools": {"chat": POOL},
    "controllers": {"none": None, "eplb": {"mode": "automatic", "optimizer": "eplb"}},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def test_a_controller_balances_what_nobody_looks_after(tmp_path: Path) -> None:
    scenario = Scenario(written(tmp_path))
    none, ours = (simulate(scenario, one, seed=1).pools["chat"] for one in ("none", "eplb"))
    assert none.requests == ours.requests
    assert none.operations == {}
    assert ours.operations["succeeded"] > 0
    assert ours.balancedness > none.balancedness + 0.1
    assert ours.attainment >= none.attainment
    assert none.gpu_hours == pytest.approx(8 * 300 / 3600)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path)
    once, again, other = (
        json.dumps(asdict(simulate(Scenario(path), "eplb", seed))) for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other


def test_an_engine_that_is_lost_costs_time_and_no_request(tmp_path: Path) -> None:
    crash = {"at_s": 60, "pool": "chat", "engine": 0, "lasts_s": 60}
    pools = {"chat": {**POOL, "arrivals": {"per_s": 30, "prompt": 400, "output": 60}}}
    plain = {"pools": pools, "controllers": {"none": None}, "seconds": 120}
    whole = simulate(Scenario(written(tmp_path, **plain)), "none", seed=1).pools["chat"]
    path = written(tmp_path, incidents=[crash], **plain)
    found = simulate(Scenario(path), "none", seed=1).pools["chat"]
    assert found.finished >= whole.finished - 5
    assert found.ttft_s["p99"] > whole.ttft_s["p99"]
    assert found.cut > whole.cut == 0


def test_an_upgraded_engine_begins_where_engines_begin(tmp_path: Path) -> None:
    """And a controller brings it to the others. Nobody's answer is cut."""
    upgrade = {"at_s": 150, "pool": "chat", "engine": 0, "lasts_s": 30, "kind": "upgrade"}
    path = written(tmp_path, incidents=[upgrade])
    world = Scenario(path).world("eplb", 1)
    world.run(300, lambda seconds: None)
    pool = world.pools["chat"]
    first, second = (engine.placement for engine in pool.engines.values())
    assert same_experts(first, second)
    assert pool.serving.cut == 0
    assert len(world.ledger.newest("operation", 10, "chat")) >= 2
    world.ledger.close()


def test_pools_like_another_have_lots_of_their_own(tmp_path: Path) -> None:
    pool = {**POOL, "times": 3, "failures": {"per_day": 500, "lasts_s": 30}}
    path = written(tmp_path, pools={"chat": pool}, seconds=60)
    found = simulate(Scenario(path), "none", 1).pools
    assert list(found) == ["chat-0", "chat-1", "chat-2"]
    assert len({one.ttft_s["p99"] for one in found.values()}) == 3
    again, other = (Scenario(path).world("none", seed).incidents for seed in (1, 2))
    assert again == Scenario(path).world("none", 1).incidents != other


def test_engines_are_upgraded_one_after_another(tmp_path: Path) -> None:
    pool = {**POOL, "upgrades": {"every_s": 200, "lasts_s": 20}}
    found = Scenario(written(tmp_path, pools={"chat": pool})).world("none", 0).incidents
    assert [(one.at_s, one.engine) for one in found] == [
        (100, "engine-0"), (120, "engine-1"),
    ]  # fmt: skip


def test_fewer_gpus_are_not_waited_for(tmp_path: Path) -> None:
    """However long another one takes to come."""
    pool = {**POOL, "engines": 1, "ranks": 4, "slots": 8, "topology": "h100"}
    pool["arrivals"] = {"per_s": 4, "prompt": 400, "output": 60}
    sizes = {"ranks": [2, 4], "step": 2, "tpot_s": 0.05, "ttft_s": 1.0, "window_s": 30}
    changes = {
        "pools": {"chat": pool},
        "controllers": {"ours": {"mode": "automatic", "optimizer": "eplb", "autoscale": sizes}},
        "capacity": {"gpus": 4, "comes_s": 10_000},
    }
    found = simulate(Scenario(written(tmp_path, **changes)), "ours", seed=1)
    assert found.series["chat"]["gpus"][-1] == 2


def test_a_size_follows_its_load(tmp_path: Path) -> None:
    """GPUs take a minute to come, and lulls of a few seconds do not give them back before that."""
    pool = {**POOL, "engines": 1, "ranks": 2, "widest": 4, "slots": 8}
    sizes = {"ranks": [2, 4], "step": 2, "tpot_s": 0.05, "ttft_s": 1.0, "window_s": 30}
    ways = {"ours": {"mode": "automatic", "optimizer": "eplb", "autoscale": sizes}}
    pool = {**pool, "arrivals": {"per_s": 40, "prompt": 600, "output": 60}, "topology": "h100"}
    path = written(tmp_path, pools={"chat": pool}, controllers=ways)
    found = simulate(Scenario(path), "ours", seed=1)
    assert max(found.series["chat"]["gpus"]) > 2


def test_one_of_many_requests_scheduled_comes_to_about_the_same(tmp_path: Path) -> None:
    full = simulate(Scenario(written(tmp_path)), "none", 1).pools["chat"]
    some = simulate(Scenario(written(tmp_path, scheduled=10)), "none", 1).pools["chat"]
    assert some.requests == full.requests
    errors = form_errors(Scenario(written(tmp_path, scheduled=10)), "none", 1)
    assert errors["TPOT p50"] == abs(some.tpot_s["p50"] / full.tpot_s["p50"] - 1)
    assert some.tpot_s["p50"] == pytest.approx(full.tpot_s["p50"], rel=0.08)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"secnds": 3}, r"secnds.*line \d+"),
        ({"pools": {"chat": {**POOL, "context": 400}}}, "400 . 60 tokens .* the context of 400"),
        ({"seconds": -1}, "seconds"),
        ({"pools": {"chat": {**POOL, "model": "mixtral"}}}, "mixtral-8x7b"),
        ({"pools": {"chat": {**POOL, "slots": 4}}}, "4 slots cannot hold 8 experts"),
        ({"pools": {"chat": {**POOL, "ranks": 3, "slots": 8}}}, "ranks|slots|divide"),
        ({"pools": {"chat": {**POOL, "model": "deepseek-v3", "ranks": 2, "slots": 256}}}, "GB"),
        ({"pools": {"chat": {**POOL, "routing": {"routing": "none.npz"}}}}, "none.npz"),
        ({"incidents": [{"at_s": 1, "pool": "chat", "engine": 2, "lasts_s": 1}]}, "engine 2"),
        ({"controllers": {"ours": {"mode": "automtic"}}}, "mode"),
        ({"capacity": {"gpus": 7, "comes_s": 1}}, "7 are fewer than the 8"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, changes: Any, why: str) -> None:
    with pytest.raises(FileError, match=why):
        Scenario(written(tmp_path, **changes)).world("none", 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Timestamp,Request tokens,Response tokens\n5,10,10\n4,10,10\n", "line 3: the clock steps"),
        ("Timestamp,Request tokens,Response tokens\n5,10,10\n5,,10\n", "line 3: no request"),
        ("Timestamp,Request tokens,Response tokens\n5,9,10\n9999,1,1\n", "line 3: no request for"),
        ("Timestamp,Request tokens,Response tokens\n5,990,20\n", "line 2: 990 .* of 1,000"),
        ('{"timestamp": 1, "input_length": 3, "output_length": 1}\nx\n', "line 2: no JSON"),
        ('{"timestamp": 1}\n', "names no trace"),
        ("", "names no trace"),
    ],
)
def test_a_trace_at_fault_is_told_by_its_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(FileError, match=why):
        read_arrivals(path, longest=1000)


def test_traces_are_known_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for text in (
        '{"timestamp": 1000, "input_length": 3, "output_length": 5, "hash_ids": [1]}\n'
        '{"timestamp": 3500, "input_length": 4, "output_length": 6, "hash_ids": [1]}\n',
        '{"timestamp": 1, "input_tokens": 3, "output_tokens": 5}\n'
        '{"timestamp": 3.5, "input_tokens": 4, "output_tokens": 6}\n',
        "Timestamp,Model,Request tokens,Response tokens\n1,a,3,5\n2,a,9,0\n3.5,a,4,6\n",
    ):
        path.write_text(text)
        found = read_arrivals(path)
        assert found.at_s.tolist() == [0.0, 2.5]
        assert (found.prompt.tolist(), found.output.tolist()) == ([3, 4], [5, 6])


def test_a_day_has_its_mean_and_its_top_in_the_afternoon() -> None:
    day = diurnal(1.0, 86_400, 0.5, bursts=0, prompt=100, output=50, longest=900, seed=0)
    assert len(day) == pytest.approx(86_400, rel=0.02)
    by_hour, _ = np.histogram(day.at_s, bins=24, range=(0, 86_400))
    assert 13 <= by_hour.argmax() <= 17
    assert day.prompt.mean() == pytest.approx(100, rel=0.05)
    assert (day.prompt + day.output).max() == 900


def test_a_minute_that_is_cut_short_has_as_many_a_second() -> None:
    begun = diurnal(100.0, 90, 0.0, bursts=0, prompt=10, output=10, longest=90, seed=0)
    assert len(begun) == pytest.approx(9000, rel=0.05)
    assert begun.at_s.max() < 90
    assert (begun.at_s >= 60).mean() == pytest.approx(1 / 3, rel=0.05)


def test_shares_are_of_tokens_that_use_top_k_experts_each() -> None:
    found = limited(np.array([[1e6, 1.0, 1.0, 2.0]]), 2)
    assert found[0, 0] == 1.0
    assert found.sum() == pytest.approx(2.0)
    assert found[0, 3] == pytest.approx(2 * found[0, 1])
    routing = drawn(preset("mixtral-8x7b"), 1.0, 0.5, 3, 3600.0, 0)
    np.testing.assert_allclose(routing.shares.sum(axis=2), 2.0)
    assert [routing.at(at_s) for at_s in (0, 299, 300, 3599, 3600)] == [0, 0, 1, 11, 0]


def test_a_recorded_trace_is_had_part_by_part() -> None:
    trace = a_trace([[[0, 1]], [[0, 2]], [[3, 1]], [[3, 2]]])
    routing = of_trace(trace, 2, 10.0)
    assert routing.shares.tolist() == [[[1, 0.5, 0.5, 0]], [[0, 0.5, 0.5, 1]]]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_scenario_runs_in_a_small_size(path: Path, tmp_path: Path) -> None:
    told = yaml.safe_load(path.read_text())
    small = tmp_path / path.name
    pools = {name: {**pool, "times": min(pool.get("times", 1), 2), "engines": 2}
             for name, pool in told["pools"].items()}  # fmt: skip
    changes = {"seconds": 60, "pools": pools, "incidents": []}
    small.write_text(yaml.safe_dump({**told, **changes}))
    scenario = Scenario(small)
    found = compare(scenario, seed=0)
    assert list(found) == list(scenario.controllers)
    for one in found.values():
        assert all(pool.finished > 0 for pool in one.pools.values())
