"""The command line as a user meets it: files in, tables and one JSON object out, exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest

from placer.files.plans import read_plan
from placer.files.routing import write_profile, write_trace
from placer.model import preset
from placer.trace import Trace
from tests.builders import a_model, loads, random_trace
from tests.cli.conftest import Placer

FIELDS = {
    "status", "reason", "optimizer", "balancedness", "balancedness_min", "balancedness_aggregate",
    "fanout_gpus", "fanout_nodes", "hops", "moved", "moved_share", "moved_bytes",
    "step_ms_before", "step_ms_after", "solve_ms", "bound", "gap", "digest", "holdout",
}  # fmt: skip


def test_plan_prints_a_table_and_writes_plan_and_report(placer: Placer) -> None:
    ended = placer("plan", "t.npz", "--gpus", "2", "--out", "p.json", "--html", "p.html")
    assert ended.code == 0
    assert "balancedness, mean" in ended.out
    assert "the MoE layers of a step take" in ended.out
    assert read_plan(Path("p.json")).placement.gpus == 2
    assert Path("p.html").read_text().startswith("<!doctype html>")


def test_json_is_one_object_and_nothing_else(placer: Placer) -> None:
    ended = placer("plan", "t.npz", "--gpus", "2", "--holdout", "0.5", "--json")
    assert ended.code == 0
    assert set(ended.json) >= FIELDS
    assert ended.json["status"] == "planned"
    assert 0 < ended.json["holdout"]["balancedness"] <= 1
    assert ended.json["bound"] is ended.json["gap"] is None


def test_exhaustive_knows_its_bound(placer: Placer) -> None:
    found = placer("plan", "t.npz", "--gpus", "8", "--optimizer", "exhaustive", "--json")
    assert found.code == 2  # 8! ways a layer
    write_trace(Path("small.npz"), random_trace(0, experts=4), a_model(experts=4, top_k=2))
    found = placer("plan", "small.npz", "--gpus", "2", "--optimizer", "exhaustive", "--json")
    assert (found.code, found.json["gap"]) == (0, 0)
    assert found.json["bound"] == pytest.approx(found.json["step_ms_after"], rel=0.5)


def test_a_plan_from_itself_is_held_with_code_3_and_nothing_written(placer: Placer) -> None:
    placer("plan", "t.npz", "--gpus", "2", "--out", "p.json")
    ended = placer(
        "plan", "t.npz", "--gpus", "2", "--current", "p.json", "--json", "--out", "q.json"
    )
    assert ended.code == 3
    assert (ended.json["status"], ended.json["moved"]) == ("hold", None)
    assert "no expert would move" in ended.err
    assert not Path("q.json").exists()


def test_clashing_limits_end_with_code_4_and_nothing_written(placer: Placer) -> None:
    ended = placer("plan", "t.npz", "--gpus", "2", "--redundant", "16", "--json", "--out", "q.json")
    assert ended.code == 4
    assert ended.json["status"] == "infeasible"
    assert "use --redundant 8 or less" in ended.json["reason"]
    assert not Path("q.json").exists()


def test_profile_then_plan_gives_what_the_trace_gives(placer: Placer) -> None:
    assert placer("profile", "t.npz", "--out", "p.npz").code == 0
    from_trace = placer("plan", "t.npz", "--gpus", "2", "--json").json
    from_profile = placer("plan", "p.npz", "--gpus", "2", "--json").json
    for name in ("digest", "balancedness", "moved", "hops"):
        assert from_trace[name] == pytest.approx(from_profile[name])


def test_transitions_of_an_older_placer_are_left_out_with_a_note(placer: Placer) -> None:
    placer("profile", "t.npz", "--out", "p.npz")
    with np.load("p.npz") as saved:
        arrays = dict(saved)
    arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), "version": 1}))
    np.savez("old.npz", **arrays)
    ended = placer("plan", "old.npz", "--gpus", "2", "--json")
    assert "old.npz: transitions left out: an older placer" in ended.err
    assert ended.json["hops"] is None
    assert placer("plan", "p.npz", "--gpus", "2", "--json").json["hops"] > 0


def test_score_measures_a_plan_on_other_tokens(placer: Placer) -> None:
    placer("plan", "t.npz", "--gpus", "2", "--out", "p.json")
    write_trace(Path("other.npz"), random_trace(9, tokens=200, experts=8))
    ended = placer("score", "p.json", "--trace", "other.npz", "--json")
    assert ended.code == 0
    assert ended.json["status"] == "scored"
    assert ended.json["balancedness"] > 0
    assert "linear" in placer("score", "p.json", "--trace", "other.npz").out


@pytest.mark.parametrize("file", ["t.npz", "p.npz", "p.json"])
def test_show_says_what_a_file_is(placer: Placer, file: str) -> None:
    placer("profile", "t.npz", "--out", "p.npz")
    placer("plan", "t.npz", "--gpus", "2", "--redundant", "4", "--out", "p.json")
    ended = placer("show", file)
    assert ended.code == 0
    assert {"t.npz": "a trace of tiny", "p.npz": "a profile of tiny", "p.json": "a plan for tiny"}[
        file
    ] in ended.out
    assert "layers down, experts across" in ended.out


def test_check_passes_a_good_plan_and_names_the_fault_of_a_bad_one(placer: Placer) -> None:
    placer("plan", "t.npz", "--gpus", "2", "--out", "p.json")
    assert "may be applied" in placer("check", "p.json").out
    data = json.loads(Path("p.json").read_text())
    data["placement"]["physical_to_logical"][1][0] = data["placement"]["physical_to_logical"][1][1]
    del data["digest"]
    Path("p.json").write_text(json.dumps(data))
    ended = placer("check", "p.json")
    assert ended.code == 2
    assert "no slot holds expert" in ended.err


@pytest.mark.parametrize("name", ["vllm", "sglang", "trtllm", "vllm-ascend"])
def test_a_plan_goes_out_and_comes_back(placer: Placer, name: str) -> None:
    placer("plan", "t.npz", "--gpus", "2", "--redundant", "2", "--out", "p.json")
    assert placer("export", "p.json", "--format", name, "--out", "f").code == 0
    ended = placer("import", "f", "--format", name, "--gpus", "2", "--out", "q.json")
    assert ended.code == 0
    assert read_plan(Path("q.json")).placement.digest == read_plan(Path("p.json")).placement.digest


def test_a_bad_plan_is_not_exported(placer: Placer) -> None:
    Path("f").write_text("[[0, 1, 0, 1]]")
    assert (
        "will refuse it"
        in placer("import", "f", "--format", "vllm", "--gpus", "1", "--out", "p.json").err
    )
    ended = placer("export", "p.json", "--format", "vllm", "--out", "g")
    assert (ended.code, Path("g").exists()) == (2, False)
    assert "GPU 0 holds expert 0 2 times" in ended.err


def test_an_unnamed_model_is_recognised_by_its_shape_or_said_to_be_unknown(placer: Placer) -> None:
    lite = preset("deepseek-v2-lite")
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((20, lite.layers, lite.experts)), axis=2)[:, :, : lite.top_k]
    np.savez("lite.npz", expert_ids=ids.astype(np.uint8), seq_lens=np.array([20]))
    np.savez("odd.npz", expert_ids=ids[:, :3].astype(np.uint8), seq_lens=np.array([20]))
    assert "taken as deepseek-v2-lite" in placer("plan", "lite.npz", "--gpus", "8", "--json").err
    odd = placer("plan", "odd.npz", "--gpus", "1", "--json")
    assert "64 experts of unknown size" in odd.err
    assert odd.json["step_ms_after"] is odd.json["moved_bytes"] is None


def bad_file(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["plan", "none.npz", "--gpus", "2"], "cannot read none.npz: No such file"),
        (["plan", "t.npz"], "where to? give --gpus 8"),
        (["plan", "t.npz", "--gpus", "3", "--nodes", "1"], "8 slots do not divide by 3 GPUs"),
        (["plan", "t.npz", "--gpus", "2", "--model", "mixtral"], "did you mean 'mixtral-8x7b'"),
        (["plan", "t.npz", "--gpus", "2", "--model", "olmoe-1b-7b"], "olmoe-1b-7b has 16 layers"),
        (["plan", "t.npz", "--topology", "h10"], "did you mean 'h100'"),
        (["plan", "t.npz", "--gpus", "2", "--optimizer", "eplp"], "did you mean 'eplb'"),
        (["plan", "t.npz", "--gpus", "2", "--holdout", "2"], "holdout 2.0: it must be a share"),
        (["plan", "t.npz", "other.npz", "--gpus", "2"], "and top-2 but other.npz has 3"),
        (["plan", "p.npz", "--gpus", "2", "--holdout", "0.5"], "--holdout needs sequences"),
        (["plan", "nan.npz", "--gpus", "2"], "load holds NaN"),
        (["plan", "cut.npz", "--gpus", "2"], "cut.npz is not a whole .npz file"),
        (["plan", "pickle.npz", "--gpus", "2"], "holds pickled objects"),
        (["plan", "twice.npz", "--gpus", "2"], "has expert 1 twice in the top-2"),
        (["plan", "t.npz", "--gpus", "2", "--out", "no/p.json"], "cannot write no/p.json"),
        (["check", "t.npz"], "t.npz is not text"),
        (["score", "none.json", "--trace", "t.npz"], "cannot read none.json"),
        (["import", "f", "--format", "vllm", "--out", "p.json"], "do not say how many GPUs"),
        (["export", "none.json", "--format", "vllm", "--out", "g"], "cannot read none.json"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_code_2_one_line_and_nothing_written(
    placer: Placer, args: list[str], message: str
) -> None:
    write_trace(Path("other.npz"), random_trace(0, layers=3))
    write_profile(Path("p.npz"), loads(np.ones((2, 8)).tolist(), top_k=2))
    meta = np.array('{"top_k": 1, "tokens": 1, "sequences": 1}')
    np.savez("nan.npz", load=np.array([[np.nan, 1.0]]), meta=meta)
    Path("cut.npz").write_bytes(Path("t.npz").read_bytes()[:-30])
    np.savez("pickle.npz", expert_ids=np.array([[[{}]]], dtype=object), seq_lens=np.array([1]))
    np.savez("twice.npz", expert_ids=np.array([[[1, 1]]]), seq_lens=np.array([1]))
    Path("f").write_text("[[0, 1]]")
    before = set(Path.cwd().iterdir())
    ended = placer(*args)
    assert ended.code == 2
    error = [line for line in ended.err.splitlines() if not line.startswith("note: ")]
    assert len(error) == 1
    assert message in error[0]
    assert ended.out == ""
    assert set(Path.cwd().iterdir()) == before


def test_with_json_an_error_is_an_object_too(placer: Placer) -> None:
    ended = placer("plan", "none.npz", "--gpus", "2", "--json")
    assert (ended.code, ended.json["status"]) == (2, "error")
    assert "cannot read none.npz" in ended.json["reason"]


def test_the_two_phases_are_told_apart(placer: Placer) -> None:
    trace = random_trace(0, tokens=400, experts=8)
    decode = Trace(trace.expert_ids, trace.seq_lens, 8, meta={"phase": "decode"})
    write_trace(Path("d.npz"), decode)
    for name in ("d", "t"):
        placer("plan", f"{name}.npz", "--gpus", "2", "--optimizer", "eplb", "--out", f"{name}.json")
    tokens = [read_plan(Path(f)).objective.tokens_per_gpu for f in ("d.json", "t.json")]
    assert tokens == [128, 8192]
