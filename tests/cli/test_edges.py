"""Odd targets, odd text, odd usage: one line, one object, one code."""

import json
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Placer

PLAN = ("plan", "t.npz", "--gpus", "2", "--optimizer", "eplb")
ESCAPES = "\x1b[31mred\x07 [/b] \x9b2J\ud800"


@pytest.mark.parametrize("option", ["--out", "--html"])
@pytest.mark.parametrize("name", ["", ".", "/", "no/such"])
def test_a_target_that_cannot_be_is_told_before_anything_is_read(
    placer: Placer, option: str, name: str
) -> None:
    ended = placer("plan", "none.npz", "--gpus", "2", option, name)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: cannot write ")


def test_a_plan_goes_through_a_pipe(placer: Placer) -> None:
    os.mkfifo("pipe")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append(Path("pipe").read_text()))
    reader.start()
    assert placer(*PLAN, "--out", "pipe").code == 0
    reader.join()
    assert json.loads(heard[0])["format"] == "placer.plan"
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "t.npz", "--gpus", "2", "--out", "t.npz"),
        ("plan", "t.npz", "--gpus", "2", "--html", "link.npz"),
        ("plan", "t.npz", "--gpus", "2", "--out", "p", "--html", "p"),
        ("profile", "t.npz", "--out", "./t.npz"),
        ("whatif", "t.npz", "--gpus", "2", "--html", "t.npz"),
        ("import", "t.npz", "--format", "vllm", "--out", "t.npz"),
        ("export", "t.npz", "--format", "vllm", "--out", "t.npz"),
        ("tables", "t.npz", "--plan", "none.json", "--out", "t.npz"),
    ],
)
def test_what_is_read_is_never_written_over(placer: Placer, words: tuple[str, ...]) -> None:
    before = Path("t.npz").read_bytes()
    Path("link.npz").symlink_to("t.npz")
    ended = placer(*words)
    assert (ended.code, "it would be lost: choose another place" in ended.err) == (2, True)
    assert Path("t.npz").read_bytes() == before
    assert not Path("p").exists()


def test_a_link_to_itself_is_no_place(placer: Placer) -> None:
    Path("loop").symlink_to("loop")
    ended = placer(*PLAN, "--out", "loop")
    assert (ended.code, "it is a link to itself" in ended.err) == (2, True)


def test_tables_may_go_to_a_device(placer: Placer) -> None:
    assert placer(*PLAN, "--out", "p.json").code == 0
    ended = placer("tables", "t.npz", "--plan", "p.json", "--out", "/dev/null")
    assert (ended.code, ended.err) == (0, "note: wrote the tables to /dev/null\n")


@pytest.mark.parametrize("verb", [("check",), ("show",), ("score", "--trace", "t.npz")])
def test_a_pipe_is_not_waited_for(placer: Placer, verb: tuple[str, ...]) -> None:
    os.mkfifo("p.json")
    ended = placer(verb[0], "p.json", *verb[1:])
    assert (ended.code, "it is no regular file" in ended.err) == (2, True)


def test_a_recording_names_presets_and_no_paths(placer: Placer) -> None:
    Path("m.yaml").write_text("{layers: 1, experts: 2, top_k: 1, hidden: 8, moe_intermediate: 4}")
    meta = np.array('{"model": "./m.yaml"}')
    np.savez("x.npz", expert_ids=np.array([[[0]], [[1]]]), seq_lens=np.array([2]), meta=meta)
    ended = placer("show", "x.npz")
    assert ended.code == 2
    assert "unknown model './m.yaml'" in ended.err


def test_a_terminal_shows_what_files_say_and_does_nothing_else(placer: Placer) -> None:
    placer(*PLAN, "--out", "p.json")
    plan = json.loads(Path("p.json").read_text())
    plan["reason"] = plan["model"]["name"] = plan["topology"]["name"] = ESCAPES
    plan["moves"] = [{"layer": 0, "expert": 0, "source": 0, "gpu": 1, "slot": 4, "reason": ESCAPES}]
    plan["score"]["before"] |= {"basis": "measured"}
    Path("\x1b[31m.json").write_text(json.dumps(plan))
    for command in (["show"], ["check"], ["score", "--trace", "t.npz"]):
        ended = placer(command[0], "\x1b[31m.json", *command[1:])
        assert ended.code == 0
        assert ended.out.replace("\n", "").isprintable()
        assert "?[31m" in ended.out
    plan["digest"] = ESCAPES
    Path("p.json").write_text(json.dumps(plan))
    ended = placer("check", "p.json")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "?[31mred? [/b]" in ended.err
    assert ended.err.replace("\n", "").isprintable()


def test_an_html_report_has_no_control_characters(placer: Placer) -> None:
    shape = {"layers": 2, "experts": 8, "top_k": 2, "hidden": 64, "moe_intermediate": 32}
    Path("m.json").write_text(json.dumps({"name": ESCAPES + "<script>", **shape}))
    assert placer(*PLAN, "--model", "m.json", "--html", "p.html").code == 0
    page = Path("p.html").read_text()
    assert "?[31mred? [/b] ?2J?&lt;script&gt;" in page
    assert "\x1b" not in page


def test_check_answers_with_an_object(placer: Placer) -> None:
    placer(*PLAN, "--out", "p.json")
    ended = placer("check", "p.json", "--json")
    assert (ended.code, ended.json["status"], ended.json["violations"]) == (0, "valid", [])
    plan = json.loads(Path("p.json").read_text())
    row = plan["placement"]["physical_to_logical"][1]
    (lost, row[0]) = (row[0], row[1])
    Path("p.json").write_text(json.dumps({**plan, "digest": None, "model": None}))
    ended = placer("check", "p.json", "--json")
    assert (ended.code, ended.json["status"]) == (2, "invalid")
    assert f"layer 1: no slot holds expert {lost}" in ended.json["violations"][0]
    assert ended.json["not_checked"] == ["memory", "model"]
    assert len(ended.err.splitlines()) == 1


def test_a_map_without_a_model_is_not_said_to_hold_all_of_its_experts(placer: Placer) -> None:
    Path("v.json").write_text("[[0, 1, 2, 3, 4, 0]]")  # of six experts, number 5 is lost
    here = ("import", "v.json", "--format", "vllm", "--gpus", "2", "--out", "p.json")
    assert placer(*here).code == 0
    ended = placer("check", "p.json")
    assert ended.code == 0
    assert "hold every one of the 5 experts that the map names" in ended.out
    assert "not checked: model" in ended.out
    sizes = "{layers: 1, experts: 6, top_k: 1, hidden: 8, moe_intermediate: 4}"
    Path("six.yaml").write_text(sizes)
    assert "layer 0: no slot holds expert 5" in placer(*here, "--model", "six.yaml").err
    assert placer("check", "p.json").code == 2


@pytest.mark.parametrize("verb", ["show", "profile", "plan", "score", "whatif"])
def test_unsigned_integers_of_64_bits_are_integers(placer: Placer, verb: str) -> None:
    placer(*PLAN, "--out", "p.json")
    with np.load("t.npz") as saved:
        arrays = dict(saved)
    told = []
    for kind in ("i8", "u8"):
        wide = {name: arrays[name].astype(kind) for name in ("expert_ids", "seq_lens")}
        np.savez("w.npz", **arrays | wide)
        args = {
            "show": ("w.npz",),
            "profile": ("w.npz", "--out", "q.npz"),
            "plan": ("w.npz", *PLAN[2:], "--out", "q.json"),
            "score": ("p.json", "--trace", "w.npz"),
            "whatif": ("w.npz", "--gpus", "2", "--optimizer", "eplb"),
        }[verb]
        ended = placer(verb, *args)
        assert ended.code == 0
        told.append(re.sub(r"solved in \d+ ms", "", ended.out))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "args",
    [
        ["plan", "--json"],
        ["plan", "t.npz", "--nonsense", "--json"],
        ["plan", "t.npz", "--gpus", "two", "--json"],
        ["nonsense", "--json"],
        ["check", "--json"],
        ["whatif", "t.npz", "--holdout", "half", "--json"],
    ],
)
def test_wrong_usage_leaves_its_object_too(placer: Placer, args: list[str]) -> None:
    ended = placer(*args)
    assert (ended.code, ended.json["status"]) == (2, "error")
    (line,) = ended.err.splitlines()
    assert line == f"error: {ended.json['reason']}"
    assert "--help" in line


def test_version_and_exit_codes_are_told(placer: Placer) -> None:
    assert placer("--version").out.startswith("placer 0.")
    told = " ".join(placer("--help").out.split())
    assert "0 done, 1 a fault of placer's own" in told
    assert "130 ended by Ctrl-C" in told
