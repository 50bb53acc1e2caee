"""The command line as a user meets it: arguments in; an exit code and two streams out."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from placer.cli.main import run
from placer.files.routing import write_trace
from tests.builders import a_model, random_trace


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found


Placer = Callable[..., Ended]


@pytest.fixture
def placer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Placer:
    """Runs the command line in an empty folder that holds t.npz, two sequences of routing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    model = replace(a_model(layers=2, experts=8, top_k=2), hidden=4096, moe_intermediate=2048)
    write_trace(Path("t.npz"), random_trace(0, tokens=400, experts=8), model)

    def call(*args: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["placer", *args])
        with pytest.raises(SystemExit) as ended:
            run()
        written = capsys.readouterr()
        return Ended(int(ended.value.code or 0), written.out, written.err)

    return call
