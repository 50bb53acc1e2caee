"""placer simulate, as a user meets it."""

import json
from pathlib import Path

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
