"""When the agent leaves an engine alone, it says so in one line and changes nothing."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

import torch
from vllm.v1.worker.worker_base import WorkerWrapperBase

from placer.agent.vllm import batches, hooks, plugin, worker_agent
from placer.errors import PlacerError
from placer.files.vocabularies import vocabulary_of


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the agent logs; vLLM's loggers do not hand on what they get."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, logger="vllm.placer")
    return caplog.messages


def test_without_placer_agent_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PLACER_AGENT", "PLACER_HMM"):
        monkeypatch.delenv(name, raising=False)
    before = WorkerWrapperBase.init_device
    plugin.register()
    assert WorkerWrapperBase.init_device is before


def test_an_unknown_vllm_is_left_alone_with_one_line(
    monkeypatch: pytest.MonkeyPatch, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PLACER_AGENT", "recording")
    monkeypatch.setattr("vllm.version.__version__", "0.40.1")
    before = WorkerWrapperBase.init_device
    plugin.register()
    assert WorkerWrapperBase.init_device is before
    (line,) = [record.getMessage() for record in caplog.records]
    assert "vLLM 0.40.1 is not known" in line
    assert "0.32 or 0.33" in line


def refuse(*_: object) -> Any:
    raise AssertionError("nothing should be opened")


def a_runner(model: torch.nn.Module, **config: object) -> Any:
    """One that has just loaded a model with such a config.json."""
    hf_config = SimpleNamespace(to_dict=lambda: config)
    model_config = SimpleNamespace(model="tiny", hf_config=hf_config)
    return SimpleNamespace(model=model, vllm_config=SimpleNamespace(model_config=model_config))


def test_a_model_without_experts_gets_one_line_and_nothing_else(
    said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    runner = a_runner(torch.nn.Linear(2, 2), hidden_size=2, num_hidden_layers=1)
    hooks._loaded(refuse, "always", runner)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("placer: the model has no experts")
    assert runner.placer is None


@pytest.mark.parametrize("value", ["sometimes", "1", "Always"])
def test_how_much_is_recorded_is_one_of_three(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PLACER_RECORD", value)
    with pytest.raises(PlacerError, match=f"'{value}': use one of never, sampled, always"):
        plugin._record()


@pytest.mark.parametrize(("value", "meant"), [("never", "never"), ("", "always")])
def test_without_a_word_all_is_recorded(
    monkeypatch: pytest.MonkeyPatch, value: str, meant: str
) -> None:
    monkeypatch.setenv("PLACER_RECORD", value)
    assert plugin._record() == meant


@pytest.mark.parametrize(
    ("rows", "kept", "lost"),
    [
        (3, [0, 1, 2], False),  # only this rank's
        (5, [2, 3, 4], False),  # those of 2 and 3 tokens, end to end
        (8, [4, 5, 6], False),  # each padded to 4
        (7, None, True),
    ],
)
def test_a_data_parallel_rank_keeps_its_own_rows(
    monkeypatch: pytest.MonkeyPatch, rows: int, kept: list[int] | None, lost: bool
) -> None:
    padded = {"local_sizes": [4, 4]} if rows == 8 else {}
    across = SimpleNamespace(num_tokens_across_dp_cpu=torch.tensor([2, 3]), **padded)
    context = SimpleNamespace(dp_metadata=across)
    monkeypatch.setattr(batches, "get_forward_context", lambda: context)
    told: list[bool] = []
    seen: list[torch.Tensor] = []
    parallel = SimpleNamespace(data_parallel_rank=1)
    batches.capture_own(told.append, seen.append, parallel, torch.arange(rows))
    assert told == [lost]
    if kept is not None:
        assert seen[0].tolist() == kept


def test_an_agent_that_fails_ends_alone(caplog: pytest.LogCaptureFixture, said: list[str]) -> None:
    class Runner:
        placer: object = "an agent"

        def execute_model(self) -> str:
            return "tokens"

    def fails(*_: object) -> None:
        raise ValueError("a bug")

    hooks._after(Runner, "execute_model", fails)
    runner = Runner()
    assert runner.execute_model() == "tokens"
    assert runner.placer is None
    assert "the agent stops, serving goes on" in caplog.text


def test_a_worker_tells_its_vocabulary_where_its_tokenizer_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    told = [
        worker_agent._vocabulary(SimpleNamespace(tokenizer=name, tokenizer_revision=None))
        for name in (str(tmp_path), "nobody/has-this", "no name // of a repository", "/nowhere")
    ]
    assert told == [vocabulary_of(tmp_path), "", "", ""]
