"""`placer record --from`: what a controller has sampled, as files that `placer plan` reads."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from controller.config import Traces
from controller.fleet.traces import Request
from placer.files.routing import read_trace
from tests.builders import a_model
from tests.cli.conftest import Placer
from tests.cli.tiny_controller import Running, a_controller

OPERATOR, READER = "operators-secret-1", "readers-secret-001"
MODEL = a_model()
HOT = np.array([0, 0, 1, 1, 2, 3])  # in both layers a token goes to the same expert, of four


@pytest.fixture
def running(placer: Placer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Where tiny samples requests. This is the reader's terminal."""
    tokens = Path("tokens.yaml")
    tokens.write_text(f"operator: [{OPERATOR}]\ntrace_reader: [{{token: {READER}, name: alice}}]\n")
    tokens.chmod(0o600)
    monkeypatch.setenv("PLACER_TOKEN", READER)
    with a_controller(tokens, Traces(100, 900.0, True)) as found:
        found.join()
        yield found


def sample(running: Running, phase: str, first_id: int, requests: int = 2) -> None:
    """Requests of six tokens each."""
    ids = np.stack([HOT, HOT], axis=1)[:, :, None].astype(np.uint16)
    told = first_id + np.arange(len(HOT), dtype=np.uint32)

    async def add() -> None:
        running.loop.traces.add("tiny", [Request(phase, 4, ids, told)] * requests)

    running.do(add())


def fetch(placer: Placer, running: Running, *more: str) -> tuple[int, str, str]:
    ended = placer("record", "--from", running.address, "--pool", "tiny", "--out", "got", *more)
    return ended.code, ended.out, ended.err


def test_each_phase_is_a_trace_that_a_plan_is_made_from(placer: Placer, running: Running) -> None:
    sample(running, "prefill", 100)
    sample(running, "decode", 200, requests=3)
    code, out, _ = fetch(placer, running)
    assert code == 0
    assert out.splitlines() == [
        "got/traces/prefill.npz: 2 requests, 12 tokens, with token ids",
        "got/traces/decode.npz: 3 requests, 18 tokens, with token ids",
        "next: placer plan got/traces/*.npz --gpus N --holdout 0.5 --out plan.json",
    ]
    decoded = read_trace(Path("got/traces/decode.npz"), MODEL)
    assert (decoded.phase, decoded.seq_lens.tolist()) == ("decode", [6, 6, 6])
    assert decoded.expert_ids[:6, :, 0].tolist() == [[one, one] for one in HOT]
    assert decoded.token_ids is not None
    assert decoded.token_ids[:6].tolist() == [200, 201, 202, 203, 204, 205]
    assert Path("got/traces").stat().st_mode & 0o777 == 0o700
    files = [f"got/traces/{phase}.npz" for phase in ("prefill", "decode")]
    ended = placer("plan", *files, "--gpus", "2", "--holdout", "0.5", "--out", "p.json")
    assert ended.code == 0, ended.err
    assert "held out" in ended.out


def test_one_phase_alone_is_fetched_on_request(placer: Placer, running: Running) -> None:
    sample(running, "prefill", 100)
    sample(running, "decode", 200)
    assert fetch(placer, running, "--phase", "decode")[0] == 0
    assert [path.name for path in Path("got/traces").iterdir()] == ["decode.npz"]


def test_the_history_shows_who_read_what(
    placer: Placer, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(running, "decode", 200)
    assert fetch(placer, running)[0] == 0
    monkeypatch.setenv("PLACER_TOKEN", OPERATOR)
    ended = placer("history", "--to", running.address)
    told = " ".join(ended.out.split())
    assert "reading-1 reading alice read sampled requests: 2 of decode, with token ids" in told
    (record,) = placer("history", "--to", running.address, "--json").json["records"]
    assert (record["kind"], record["pool"]) == ("reading", "tiny")
    assert record["body"] == {"who": "alice", "requests": {"decode": 2}, "token_ids": True}


def test_with_an_operators_token_it_says_whose_is_needed(
    placer: Placer, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACER_TOKEN", OPERATOR)
    code, out, err = fetch(placer, running)
    assert (code, out) == (2, "")
    assert "is for trace readers, and this is an operator's token: use a trace reader's" in err
    assert not Path("got").exists()


def test_before_anything_was_sampled_it_writes_nothing(placer: Placer, running: Running) -> None:
    code, _, err = fetch(placer, running)
    assert (code, "keeps no sampled requests of tiny, mixed: wait until some" in err) == (2, True)
    assert not Path("got").exists()


def test_traces_that_are_there_are_not_mixed_with_others(placer: Placer, running: Running) -> None:
    sample(running, "decode", 200)
    assert fetch(placer, running)[0] == 0
    code, _, err = fetch(placer, running)
    assert (code, "got/traces holds traces: choose another --out, or remove them" in err) == (
        2,
        True,
    )


@pytest.mark.parametrize("more", [[], ["--from", "127.0.0.1:1", "--", "vllm", "serve"]])
def test_it_takes_a_command_or_a_controller(placer: Placer, more: list[str]) -> None:
    ended = placer("record", *more)
    assert ended.code == 2
    assert "give a command after --, or a controller with --from" in ended.err


def test_tables_of_what_is_kept_are_fetched_too(placer: Placer, running: Running) -> None:
    sample(running, "prefill", 100, requests=3)
    args = ("tables", "--from", running.address, "--pool", "tiny", "--out", "t.npz")
    ended = placer(*args)
    assert ended.code == 0, ended.err
    assert "18 tokens of 3 sequences, 6 known tokens, 12 contexts" in ended.err
    ended = placer(*args, "--plan", "none.json")
    assert (ended.code, "none.json" in ended.err) == (2, True)


def test_tables_come_from_traces_or_from_a_controller(placer: Placer, running: Running) -> None:
    for args in ((), ("t.npz", "--from", running.address), ("t.npz",)):
        ended = placer("tables", *args, "--out", "new.npz")
        assert ended.code == 2
        assert "give traces and --plan, or a controller with --from" in ended.err
        assert not Path("new.npz").exists()
