"""When the agent leaves an engine alone, it says so in one line and changes nothing."""

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

import torch
from vllm.v1.worker.worker_base import WorkerWrapperBase

from placer.agent.vllm import hooks, plugin


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the agent logs; vLLM's loggers do not hand on what they get."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, logger="vllm.placer")
    return caplog.messages


def test_without_placer_agent_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLACER_AGENT", raising=False)
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


def test_a_model_without_experts_gets_one_line_and_nothing_else(
    said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing should be opened")

    runner = SimpleNamespace(model=torch.nn.Linear(2, 2))
    hooks._loaded(refuse, runner)  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [
        "placer: the model has no experts, nothing to do"
    ]
    assert not hasattr(runner, "placer")


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
    monkeypatch.setattr(hooks, "get_forward_context", lambda: context)
    agent = SimpleNamespace(lost_rows=False)
    seen: list[torch.Tensor] = []
    parallel = SimpleNamespace(data_parallel_rank=1)
    hooks._capture_own(agent, seen.append, parallel, torch.arange(rows))  # type: ignore[arg-type]
    assert agent.lost_rows is lost
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
