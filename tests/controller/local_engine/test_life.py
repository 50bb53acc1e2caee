"""Starting, closing, and what is not served."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from controller.local_engine.local_engine import LocalEngine
from controller.local_engine.ranks.group import EngineError
from controller.local_engine.requests import RequestError
from controller.migration.commands import Lost, Stage
from placer.errors import FileError, ModelError, PlacementError, PlacerError
from tests.controller.local_engine.tiny_engine import (
    MODEL,
    arenas_of,
    eventually,
    everybody,
    runs,
)


def test_close_leaves_no_process_no_memory_and_no_thread() -> None:
    engine = LocalEngine(MODEL, 2)
    pids = everybody(engine)
    assert len(pids) == 5
    assert all(map(runs, pids))
    engine.close()
    engine.close()
    assert not any(map(runs, pids))
    assert not arenas_of(os.getpid())
    assert "local-engine" not in {thread.name for thread in threading.enumerate()}


def test_a_closed_engine_says_so() -> None:
    with LocalEngine(MODEL, 1) as engine:
        request = engine.submit(b"import os", 1000)
        waits = threading.Thread(target=request.tokens)
        waits.start()
    waits.join()
    assert request.error == "the engine was closed: start another"
    assert len(request.tokens()) < 1000
    with pytest.raises(EngineError, match="was closed"):
        engine.submit(b"import os", 5)
    again = Stage(1, engine.placement, engine.placement)
    assert engine.carry_out(again) == Lost("the engine was closed: start another")


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        (b"", 5, "the prompt has 0 tokens: give 1 or more"),
        ([3, 256], 5, r"token 256 is outside 0\.\.255: use the model's ids"),
        ([-1], 5, r"token -1 is outside 0\.\.255"),
        (b"import", 0, "max_tokens is 0: ask for 1 or more"),
        (b"a" * 1000, 25, "1000 prompt tokens and max_tokens 25 exceed the context of 1024"),
    ],
)
def test_requests_that_cannot_be_served_are_named(
    prompt: Any, max_tokens: int, message: str
) -> None:
    with LocalEngine(MODEL, 1) as engine:
        with pytest.raises(RequestError, match=message):
            engine.submit(prompt, max_tokens)
        assert len(engine.submit(b"a" * 999, 25).tokens()) == 25


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"ranks": 0}, "ranks is 0: give 1 or more"),
        ({"ranks": 2, "slots": 15}, "15 slots do not hold 16 experts"),
        ({"ranks": 3}, "16 slots do not divide by 3 GPUs: use 18"),
        ({"ranks": 2, "scratch": -1}, "scratch is -1"),
    ],
)
def test_impossible_engines_are_refused(counts: dict[str, Any], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        LocalEngine(MODEL, **counts)
    assert not arenas_of(os.getpid())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model_type": "mixtral"}, ModelError, "model_type is 'mixtral'"),
        ({"use_sliding_window": True}, ModelError, "use_sliding_window is True"),
        ({"head_dim": 16}, ModelError, "q_proj.weight is .128, 128. but config.json says .64, 12"),
        ({"moe_intermediate_size": 32}, ModelError, "is .64, 128. but config.json says .32, 128."),
        ({"num_hidden_layers": 7}, ModelError, "has no model.layers.6.input_layernorm.weight"),
        ({"rms_norm_eps": None}, ModelError, "has no 'rms_norm_eps'"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[PlacerError], message: str
) -> None:
    config = json.loads((MODEL / "config.json").read_text()) | change
    kept = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    (tmp_path / "model.safetensors").symlink_to(MODEL / "model.safetensors")
    with pytest.raises(error, match=message):
        LocalEngine(tmp_path, 1)


def test_missing_and_broken_weights_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((MODEL / "config.json").read_bytes())
    with pytest.raises(FileError, match=r"cannot read .*model\.safetensors"):
        LocalEngine(tmp_path, 1)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(FileError, match=r"cannot read .*model\.safetensors"):
        LocalEngine(tmp_path, 1)


def test_status_tells_what_is_served() -> None:
    with LocalEngine(MODEL, 1) as engine:
        request = engine.submit(b"import os", 400)
        next(iter(request))
        assert engine.status.running == 1
        request.tokens()
        assert eventually(lambda: engine.status.running == 0)
        assert engine.status.steps == 400
        assert engine.status.waiting == engine.status.restarts == 0
