"""The examples run as they stand."""

import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from controller.config import read_config
from controller.server.security import Tokens
from tests.cli.tiny_controller import a_controller

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plan_from_python_gives_replicas_to_the_hot_expert(
    capsys: pytest.CaptureFixture[str],
) -> None:
    load("plan").main()
    first, *gpus = capsys.readouterr().out.splitlines()
    assert "less time" in first
    # Expert 0 has 6 of 13 thousand tokens of the first layer: most of the redundant slots.
    assert sum("[0, " in line or " 0, " in line or ", 0]" in line for line in gpus) >= 3


def test_a_script_asks_a_controller_what_it_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    with a_controller() as running:
        running.join(pool="chat")
        load("api").main(running.address)
    assert capsys.readouterr().out.startswith("chat: hold: ")


def test_the_settings_and_tokens_are_what_the_controller_takes(tmp_path: Path) -> None:
    config = read_config(EXAMPLES / "controller.yaml")
    assert config.of("chat").mode == "automatic"
    assert config.of("code").mode == "advisory"
    assert (config.of("chat").traces.requests, config.of("code").traces.requests) == (1000, 0)
    private = tmp_path / "tokens.yaml"
    shutil.copy(EXAMPLES / "tokens.yaml", private)
    private.chmod(0o600)
    assert Tokens(private).role("0" * 47 + "3") is not None
    assert Tokens(private).reader("0" * 47 + "4") == "alice"
