"""placer tables, predict and advise as a user meets them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from placer.files.routing import write_trace
from placer.model import ModelShape
from placer.trace import Trace
from tests.builders import random_trace
from tests.cli.conftest import Placer

MODEL = ModelShape("tiny", 2, 8, 2, hidden=4096, moe_intermediate=2048)


def write(name: str, seed: int = 0, model: ModelShape = MODEL, ids: bool = True) -> None:
    """40 requests of 10 tokens, of 20 kinds."""
    found = random_trace(seed, tokens=400, layers=model.layers, experts=8)
    tokens = np.random.default_rng(seed).integers(20, size=400) if ids else None
    trace = Trace(found.expert_ids, np.full(40, 10), 8, tokens, meta={"phase": "prefill"})
    write_trace(Path(name), trace, model)


@pytest.fixture
def made(placer: Placer) -> Placer:
    """Beside it, traces a.npz and b.npz, a plan and tables of a.npz."""
    write("a.npz", 0)
    write("b.npz", 1)
    assert placer("plan", "a.npz", "--gpus", "2", "--out", "p.json").code == 0
    Path("tokenizer.json").write_text("{}")
    args = ("--plan", "p.json", "--out", "t.npz", "--tokenizer", "tokenizer.json")
    ended = placer("tables", "a.npz", *args)
    assert ended.code == 0
    assert ended.out == ""
    assert "400 tokens of 40 sequences, 20 known tokens" in ended.err
    return placer


def test_predict_prints_tables(made: Placer) -> None:
    ended = made("predict", "b.npz", "--tables", "t.npz")
    assert ended.code == 0
    for text in ("the token, top-k", "4 tokens, top-k", "LAR", "SRP, 16 tokens", "by an oracle"):
        assert text in ended.out
    assert "the tables know 100.0% of the tokens" in ended.err


def test_predict_prints_one_object_too(made: Placer) -> None:
    ended = made("predict", "b.npz", "--tables", "t.npz", "--json")
    found = ended.json
    assert (ended.code, found["status"], found["upper_bound"]) == (0, "predicted", False)
    assert [one["context"] for one in found["top_k"]] == [0, 1, 2, 3, 4]
    assert len(found["lar"]["tokens_aligned"]) == 2
    assert [one["batch"] for one in found["batches"]] == [8, 16]
    assert found["srp"][1] == {"segment": 64, "f1": None}  # no request is as long
    own = made("predict", "a.npz", "--tables", "t.npz", "--json").json
    assert own["top_k"][1]["recall"] > found["top_k"][1]["recall"] > 0


def test_tables_are_counted_piece_by_piece_whatever_files_they_come_in(made: Placer) -> None:
    made("tables", "a.npz", "b.npz", "--plan", "p.json", "--out", "one.npz")
    made("tables", "b.npz", "a.npz", "--plan", "p.json", "--out", "other.npz")
    with np.load("one.npz") as one, np.load("other.npz") as other:
        assert set(one) == set(other)
        for name in one:
            assert one[name].tolist() == other[name].tolist()


def test_an_embedding_gives_unseen_tokens_a_neighbours_row(made: Placer) -> None:
    np.savez("e.npz", embedding=np.arange(30, dtype=np.float32)[:, None])
    made("tables", "a.npz", "--plan", "p.json", "--out", "e-t.npz", "--embedding", "e.npz")
    with np.load("e-t.npz") as saved:
        assert saved["tokens"].tolist() == list(range(30))
        assert saved["row"].tolist() == [*range(20), *[19] * 10]


def test_tables_of_another_plan_model_or_vocabulary_are_refused_and_both_are_named(
    made: Placer,
) -> None:
    made("plan", "b.npz", "--gpus", "4", "--out", "q.json")
    digests = [json.loads(Path(name).read_text())["digest"] for name in ("p.json", "q.json")]
    ended = made("predict", "b.npz", "--tables", "t.npz", "--plan", "q.json")
    assert ended.code == 2
    assert all(digest in ended.err for digest in digests)

    write("c.npz", model=replace(MODEL, name="huge"))
    ended = made("predict", "c.npz", "--tables", "t.npz")
    assert ended.code == 2
    assert "for model tiny (2 layers x 8 experts, top-2), and this is huge (2 layers" in ended.err

    Path("other.json").write_text("[]")
    ended = made("predict", "b.npz", "--tables", "t.npz", "--tokenizer", "other.json")
    assert ended.code == 2
    assert ended.err.count("sha256:") == 2


def test_without_token_ids_the_tables_are_an_upper_bound(made: Placer) -> None:
    write("c.npz", ids=False)
    ended = made("tables", "c.npz", "--plan", "p.json", "--out", "c-t.npz")
    assert ended.code == 0
    assert "an upper bound" in ended.err
    ended = made("predict", "c.npz", "--tables", "c-t.npz")
    assert "an upper bound: there are no token ids" in ended.err
    ended = made("predict", "c.npz", "--tables", "t.npz", "--json")
    assert ended.code == 2
    assert "token ids, and this is expert sets of the first layer" in ended.json["reason"]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["tables", "p.npz", "--plan", "p.json"], "p.npz is a profile: give a trace"),
        (["tables", "a.npz", "--plan", "none.json"], "none.json"),
        (["tables", "a.npz", "c.npz", "--plan", "p.json"], "by token ids and by expert sets"),
        (["tables", "d.npz", "--plan", "p.json"], "p.json is for tiny (2 layers"),
        (["tables", "a.npz", "--plan", "p.json", "--tokenizer", "none"], "cannot read none"),
        (["tables", "a.npz", "--plan", "p.json", "--embedding", "a.npz"], "no array 'embedding'"),
    ],
)
def test_what_makes_no_tables_ends_with_code_2_and_writes_nothing(
    made: Placer, args: list[str], told: str
) -> None:
    made("profile", "a.npz", "--out", "p.npz")
    write("c.npz", ids=False)
    write("d.npz", model=replace(MODEL, layers=3, moe_layers=(), hidden_layers=0))
    ended = made(*args, "--out", "new.npz")
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.err
    assert not Path("new.npz").exists()


def test_a_table_file_cut_short_is_refused(made: Placer) -> None:
    Path("t.npz").write_bytes(Path("t.npz").read_bytes()[:500])
    ended = made("predict", "b.npz", "--tables", "t.npz")
    assert ended.code == 2
    assert ended.err.startswith("error: t.npz ")


def test_advise_says_what_is_worth_it(made: Placer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placer.prediction.advice.SPLITS", 2)
    ended = made("advise", "a.npz", "--gpus", "2", "--json")
    found = ended.json
    assert (ended.code, found["status"]) == (0, "advised")
    assert [one["way"] for one in found["savings"]] == [
        "pre-scheduling", "prefetching", "expert caching"
    ]  # fmt: skip
    assert all(one["elsewhere_s"] is None for one in found["savings"])
    ended = made("advise", "a.npz", "b.npz", "--gpus", "2")
    assert ended.code == 0
    assert "verdict" in ended.out
    assert "worth it: " in ended.out
    assert "(allgather), a request's home changes nothing" in ended.err


def test_advise_needs_the_models_sizes(made: Placer) -> None:
    write("u.npz", model=replace(MODEL, name="unknown", sized=False))
    ended = made("advise", "u.npz")
    assert ended.code == 2
    assert "seconds need the model's sizes: give --model" in ended.err
