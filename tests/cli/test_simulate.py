"""placer simulate, as a user meets it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Placer
from tests.simulations.test_scenarios import written


def test_the_command_compares_controllers(placer: Placer, tmp_path: Path) -> None:
    path = written(tmp_path, seconds=60)
    told = json.loads(placer("simulate", str(path), "--json", "--controller", "none").out)
    assert list(told["found"]) == ["none"]
    assert len(told["found"]["none"]["series"]["chat"]["gpus"]) == 1
    refused = placer("simulate", str(path), "--controller", "nine")
    assert refused.code == 2
    assert "none" in refused.err


@pytest.mark.slow
def test_a_sweep_says_where_its_lines_go(placer: Placer, tmp_path: Path) -> None:
    path, lines = written(tmp_path, seconds=60), tmp_path / "lines"
    refused = placer("simulate", str(path), "--seeds", "0:2")
    assert (refused.code, "--results" in refused.err) == (2, True)
    refused = placer("simulate", str(path), "--seeds", "2:2", "--results", str(lines))
    assert (refused.code, "0:10" in refused.err) == (2, True)
    many = ("simulate", str(path), "--seeds", "0:2", "--controller", "none", "--results")
    told = placer(*many, str(lines))
    assert told.code == 0
    assert len(lines.read_text().splitlines()) == 2
    before = lines.read_bytes()
    assert placer(*many, str(lines)).out == told.out
    assert lines.read_bytes() == before
