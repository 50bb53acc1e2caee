import threading
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from controller import metrics
from controller.fleet.homing import Homed, Homing
from controller.fleet.windows import Delta
from controller.fleet.workers import FORGOTTEN_S
from controller.metrics import LoopCollector
from placer.model import ModelShape
from placer.pace import Pace
from placer.placement import Placement
from tests.controller.tiny_pool import (
    BYTES,
    POOL,
    SKEWED,
    TICK_S,
    World,
    a_delta,
    a_registration,
    in_virtual_time,
)

WIDE = ModelShape("wide", 58, 64, 1, hidden=1, moe_intermediate=1)


def scrape(world: World, detail: bool = False) -> dict[str, float]:
    """Series -> value, as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(LoopCollector(world.loop, detail))
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


@in_virtual_time
async def test_the_figures_of_a_tiny_pool() -> None:
    world = World(mode="automatic", confirmations=1)
    world.count(SKEWED)
    await world.tick()
    await world.tick(TICK_S)
    await world.clock.sleep(5.0)
    label = 'pool="chat"'
    expected = {
        "placer_conditions": 0,
        f"placer_balancedness_ratio{{{label}}}": 1.0,  # 500 tokens on each rank
        f"placer_predicted_gain_ratio{{{label}}}": 0.375,  # 500 and not 800 on the busiest
        f"placer_measured_gain_ratio{{{label}}}": 0.375,
        f"placer_plan_age_seconds{{{label}}}": 35,
        f"placer_plan_epoch{{{label}}}": 0,
        f"placer_window_tokens{{{label}}}": 1000,
        f"placer_workers{{{label}}}": 2,
        f"placer_agent_lag_seconds{{{label}}}": 5,
        f"placer_longest_pause_seconds{{{label}}}": 0,
        f"placer_dropped_deltas_total{{{label}}}": 0,
        f'placer_decisions_total{{outcome="act",{label}}}': 1,
        f'placer_decisions_total{{outcome="hold",{label}}}': 1,
        f'placer_operations_total{{phase="succeeded",{label}}}': 1,
        f"placer_copied_bytes_total{{{label}}}": 8 * BYTES,  # 2 engines, 2 layers, 2 copies
        f"placer_moved_slots_total{{{label}}}": 8,
    }
    found = {_sorted(name): value for name, value in scrape(world).items()}
    assert found == pytest.approx({_sorted(name): value for name, value in expected.items()})


def _sorted(series: str) -> str:
    """Labels have no order."""
    name, _, labels = series.partition("{")
    return f"{name}{{{','.join(sorted(labels.rstrip('}').split(',')))}}}"


def test_before_anything_is_known_only_that_is_told_which_is() -> None:
    world = World()
    world.fleet.pools.clear()
    assert scrape(world, detail=True) == {"placer_conditions": 0}
    world.hear()
    assert set(scrape(world)) == {
        "placer_conditions",
        'placer_plan_epoch{pool="chat"}',
        'placer_window_tokens{pool="chat"}',
        'placer_workers{pool="chat"}',
        'placer_agent_lag_seconds{pool="chat"}',
        'placer_dropped_deltas_total{pool="chat"}',
    }


def test_workers_that_lag_or_lose_pushes_are_seen() -> None:
    world = World()
    world.fleet.register(a_registration("e1", dropped=1))
    world.clock.advance(40.0)
    registration = a_registration(epoch=7, dropped=3)
    world.fleet.register(registration)
    for sequence in (1, 3):  # it knows of more than we do
        world.fleet.push(registration.id, sequence, [a_delta(SKEWED)])
    found = scrape(world)
    assert found['placer_dropped_deltas_total{pool="chat"}'] == 3 + 1
    assert found['placer_agent_lag_seconds{pool="chat"}'] == 40
    assert found['placer_plan_epoch{pool="chat"}'] == 7


def test_tokens_are_those_of_the_phase_that_is_planned_for() -> None:
    world = World(phase="decode")
    registration = a_registration()
    deltas = [a_delta(SKEWED), a_delta([[5, 0, 0, 0]] * 2, phase="prefill")]
    world.fleet.push(registration.id, 1, deltas)
    assert scrape(world)['placer_window_tokens{pool="chat"}'] == 1000


@in_virtual_time
async def test_what_keeps_the_controller_from_its_work_is_counted() -> None:
    world = World()
    world.disk.is_full = True
    await world.tick()
    assert scrape(world)["placer_conditions"] == len(world.loop.conditions) > 0


@in_virtual_time
async def test_with_detail_every_rank_of_every_layer_is_told() -> None:
    world = World()
    world.count([[400, 400, 100, 100], [1000, 0, 0, 0]])
    await world.tick()
    name = "placer_rank_load_tokens"
    found = {
        _sorted(series): value for series, value in scrape(world, True).items() if name in series
    }
    assert found == {
        _sorted(f'{name}{{layer="{layer}",pool="chat",rank="{rank}"}}'): tokens
        for layer, rank, tokens in ((0, 0, 800), (0, 1, 200), (1, 0, 1000), (1, 1, 0))
    }
    assert not any(name in series for series in scrape(world))


def test_how_long_steps_take_and_how_busy_engines_are() -> None:
    world = World(phase="decode")
    pace = Pace(50, 1.0, 4.0)
    world.fleet.push(a_registration().id, 1, [a_delta(SKEWED)], {"decode": pace})
    found = scrape(world)
    assert found['placer_step_seconds{pool="chat"}'] == 0.02
    assert found['placer_busy_ratio{pool="chat"}'] == 0.25


@in_virtual_time
async def test_a_pool_of_64_ranks_and_58_layers_has_few_series() -> None:
    """Even after every outcome and every end that there is."""
    row = np.tile(np.arange(64), (58, 1))
    world = World([Placement(row, 64, 64, 32)])
    world.fleet.pools.clear()
    more: dict[str, Any] = {"ep_size": 64, "slots": 64, "layers": 58, "experts": 64, "shape": WIDE}
    registration = a_registration(actor="there", **more)
    world.fleet.register(registration)
    load = np.full((58, 64), 100, dtype=np.uint32)
    world.fleet.push(registration.id, 1, [Delta("decode", 1, 6400, 1, load)])
    await world.loop.tick()
    for outcome in ("hold", "infeasible", "wait", "propose", "act"):
        world.loop.counted[POOL, outcome] += 1
    for phase in ("succeeded", "rolled back", "halted"):
        world.arbiter.totals.ended[POOL, phase] += 1
    world.arbiter.totals.copied_bytes[POOL,] = world.arbiter.totals.moved[POOL,] = 1
    assert world.loop.conditions == {}
    assert len(scrape(world)) <= 26
    assert len(scrape(world, detail=True)) > 64 * 58


def test_prometheus_may_ask_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    world, servers = World(), []

    def start(*args: Any) -> None:
        servers.append(start_http_server(*args))

    monkeypatch.setattr("controller.metrics.start_http_server", start)
    metrics.serve(world.loop, "127.0.0.1:0", detail=False)
    ((server, thread),) = servers
    try:
        with urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as response:
            assert b'placer_workers{pool="chat"} 2.0' in response.read()
        assert isinstance(thread, threading.Thread)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@in_virtual_time
async def test_counters_do_not_fall_when_workers_retire_or_start_again() -> None:
    """As those of vLLM do when its width changes."""
    world, dropped = World(), 'placer_dropped_deltas_total{pool="chat"}'
    for life, count in ((1, 5), (2, 0), (3, 2)):
        told = a_registration("e0", actor="there", incarnation=life, dropped=count)
        world.fleet.register(told)
        assert scrape(world)[dropped] == {1: 5, 2: 5, 3: 7}[life]
    world.fleet.register(a_registration("e0", "w1", rank=1, dropped=4))
    await world.clock.sleep(FORGOTTEN_S)
    world.hear()
    world.fleet.forget()
    assert scrape(world)[dropped] == 11


def test_what_tables_win_is_told_by_how_ranks_were_chosen() -> None:
    world = World()
    groups = {
        "tables": Homed(40, 0.5, 0.75, 0.01, 0.6, 21.5, 0.1, 0.8, 22.5),
        "load": Homed(30, 0.25, 1.5, 0.01),  # of which nothing was foretold
    }
    world.loop.homings.of["chat"] = Homing(groups)
    found = scrape(world)
    local, remote = "placer_local_activation_ratio", "placer_remote_fanout"
    assert found[f'{local}{{by="tables",pool="chat"}}'] == 0.5
    assert found[f'{remote}{{by="load",pool="chat"}}'] == 1.5
    assert found['placer_distinct_experts{by="tables",pool="chat"}'] == 21.5
    predicted = {
        "placer_predicted_local_activation_ratio": 0.6,
        "placer_predicted_remote_fanout": 0.8,
        "placer_predicted_distinct_experts": 22.5,
    }
    for name, value in predicted.items():
        assert found[f'{name}{{by="tables",pool="chat"}}'] == value
        assert f'{name}{{by="load",pool="chat"}}' not in found
