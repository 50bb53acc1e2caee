"""A simulated run on the page: two controllers of one scenario, side by side."""

import json
import re
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from placer.cli.main import app
from simulations.outcome import _by_minute, simulate
from simulations.scenario import Scenario

SCENARIO = """
seconds: 300
every_s: 60
scheduled: 20
pools:
  chat:
    model: {model}
    engines: 2
    ranks: 2
    arrivals: {{per_s: 2, prompt: 400, output: 20}}
    policy: {{phase: mixed, max_moved: 1.0, confirmations: 1, cooldown_s: 0, window_s: 120,
             least_tokens: 1000}}
controllers:
  none: null
  eplb: {{mode: automatic, optimizer: eplb}}
"""
MODEL = """
name: tiny
layers: 2
experts: 8
top_k: 2
hidden: 1024
moe_intermediate: 1024
other_bytes: 1000000000
"""


def a_scenario(folder: Path) -> Path:
    model = folder / "tiny.yaml"
    model.write_text(MODEL)
    path = folder / "scenario.yaml"
    path.write_text(SCENARIO.format(model=model))
    return path


def test_a_minutes_share_is_of_those_that_arrived_in_it() -> None:
    at_s, kept = np.array([0.0, 59.0, 61.0, 200.0]), np.array([True, False, True, True])
    shares = _by_minute(at_s, kept, 3)
    assert shares[:2] == [0.5, 1.0]
    assert np.isnan(shares[2])  # nobody came; and who came later is in no minute of the series


def test_a_runs_lines_events_and_plans_are_told(tmp_path: Path) -> None:
    scenario = Scenario(a_scenario(tmp_path))
    none, eplb = (simulate(scenario, name, 0).run for name in ("none", "eplb"))
    assert [row.gpus for row in none.pools] == [4]
    assert list(none.lines["chat"]["gpus"].values) == [4] * 5
    assert list(none.lines["chat"]["gpus"].at_s) == [60, 120, 180, 240, 300]
    assert (none.events, none.plans, none.pools[0].mode) == ([], [], "no controller")
    assert eplb.pools[0].mode == "automatic"
    assert any(one.kind == "decision" for one in eplb.events)
    assert all(0 <= one.at_s <= 300 for one in eplb.events)
    assert all(one.heat is not None and not one.command for one in eplb.plans)
    assert eplb.plans
    assert list(none.figures["chat"])[:2] == ["requests answered", "requests in time"]


def test_the_command_writes_a_page_and_the_same_json(tmp_path: Path) -> None:
    path, page = a_scenario(tmp_path), tmp_path / "page.html"
    told = CliRunner().invoke(app, ["simulate", str(path), "--html", str(page), "--json"])
    assert told.exit_code == 0, told.output
    assert set(json.loads(told.stdout)["found"]["eplb"]) == {"pools", "series", "story"}
    data = re.search(r'id="data">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    assert data
    shown = json.loads(data[1])
    assert [run["name"] for run in shown["runs"]] == ["none", "eplb"]
    assert shown["source"] == "simulation"
