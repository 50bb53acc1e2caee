"""placer whatif as a user meets it: tables or one JSON object, a report, exit codes."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from placer.files.routing import write_profile
from placer.profile import of_trace
from tests.builders import a_model, random_trace
from tests.cli.conftest import Placer


def test_json_is_one_object_with_every_case_and_the_report_stands_alone(placer: Placer) -> None:
    args = ("--gpus", "2", "--redundant", "0..4", "--json", "--html", "r.html")
    ended = placer("whatif", "t.npz", *args)
    assert ended.code == 0
    assert set(ended.json) == {"status", "reason", "best", "cases", "notes"}
    # Of the range, those that give both GPUs as many slots.
    assert [case["redundant"] for case in ended.json["cases"]] == [0, 2, 4]
    assert ended.json["best"] in ended.json["cases"]
    assert ended.json["best"]["knee"] is True
    assert "held-out sequences" in ended.json["reason"]
    assert "wrote the report to r.html" in ended.err

    plotly = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    page = Path("r.html").read_text(encoding="utf-8")
    assert plotly in page
    page = page.replace(plotly, "")
    assert not re.search(r"https?://|(src|href)=", page)
    assert ended.json["reason"] in page
    drawn = re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert drawn
    (curve,) = json.loads(drawn[1])["curves"]
    assert curve["redundant"] == [0, 2, 4]
    assert curve["step_ms"] == [case["step_ms_after"] for case in ended.json["cases"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--optimizer", "joyn"), "unknown optimizer 'joyn': did you mean 'joint'"),
        (("--model", "mixtral-8x7b"), "mixtral-8x7b has 32 layers x 8 experts, top-2 but the inp"),
        (
            ("--current", "other.json"),
            "but tiny has 2 layers x 8 experts, top-2: give the plan that runs it",
        ),
    ],
)
def test_what_no_case_could_do_with_is_bad_input(
    placer: Placer, words: tuple[str, ...], said: str
) -> None:
    Path("map").write_text("[[0, 1]]")
    placer("import", "map", "--format", "vllm", "--gpus", "2", "--out", "other.json")
    ended = placer("whatif", "t.npz", "--gpus", "2", *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def test_there_is_a_table_a_width_and_a_verdict_below(placer: Placer) -> None:
    placer("plan", "t.npz", "--gpus", "2", "--out", "p.json")
    args = ("--gpus", "2,4", "--redundant", "0,4", "--dispatch", "dedup", "--current", "p.json")
    ended = placer("whatif", "t.npz", *args)
    assert ended.code == 0
    assert "2 GPUs in 1 node (h100), dedup" in ended.out
    assert "4 GPUs in 1 node (h100), dedup" in ended.out
    rows = [line.split("│")[1:-1] for line in ended.out.splitlines() if line.startswith("│")]
    slots, *_, moved = ([cell.strip() for cell in column] for column in zip(*rows, strict=True))
    assert [cell.split()[0] for cell in slots] == ["0", "4", "0", "4"]
    assert sorted(cell.count("*") for cell in slots) == [0, 0, 1, 2]
    # The running plan is compared with where it fits.
    assert moved[0].endswith("%")
    assert moved[1:] == ["-", "-", "-"]
    assert re.match(r"(not_)?recommended: |insufficient_evidence: ", ended.out.splitlines()[-1])


def test_no_case_with_an_answer_is_an_answer_too(placer: Placer) -> None:
    ended = placer("whatif", "t.npz", "--gpus", "2", "--redundant", "1", "--json")
    assert (ended.code, ended.json["status"], ended.json["best"]) == (0, "not_recommended", None)
    (case,) = ended.json["cases"]
    assert case["problem"].startswith("9 slots do not divide by 2 GPUs: use 8 (--redundant 0)")


def test_a_profile_has_no_sequences_to_be_judged_on(placer: Placer) -> None:
    profile = of_trace(random_trace(0, tokens=400, experts=8))
    write_profile(Path("p.npz"), profile, a_model(experts=8, top_k=2))
    ended = placer("whatif", "p.npz", "--gpus", "2", "--json")
    assert ended.code == 0
    assert "without a hold-out" in ended.json["reason"]


@pytest.mark.parametrize(
    ("args", "value", "remedy"),
    [
        (["--gpus", "two"], "--gpus 'two'", "give whole numbers, such as 8,16,32"),
        (["--gpus", "2,,4"], "--gpus ''", "give whole numbers"),
        (["--gpus", "-2"], "--gpus '-2'", "give whole numbers"),
        (["--gpus", "2.5"], "--gpus '2.5'", "give whole numbers"),
        (["--gpus", "2", "--redundant", "many"], "--redundant 'many'", "give whole numbers"),
        (["--gpus", "2", "--redundant", "0..many"], "--redundant 'many'", "give whole numbers"),
        (["--gpus", "2", "--redundant", "0,-2"], "--redundant '-2'", "give whole numbers"),
        (["--gpus", "2", "--dispatch", "dedupe"], "dispatch 'dedupe'", "did you mean 'dedup'"),
        (["--gpus", "2", "--dispatch", "dedup,"], "dispatch ''", "use one of allgather, dedup, "),
        (["--gpus", "2", "--redundant", "1..1"], "--redundant 1..1", "0 and every 2 more do"),
        (["--gpus", "2", "--redundant", "8..0"], "--redundant 8..0", "0 and every 2 more do"),
        (["--gpus", "0"], "0 GPUs", "give 1 or more"),
        (["--gpus", "2", "--ray", "127.0.0.1:1"], "'127.0.0.1:1'", "check --ray"),
        (["--topology", "h100,h20"], "topology 'h20'", "did you mean 'h200'"),
        (["--topology", "none.yaml"], "none.yaml", "check the path"),
        (["--gpus", "2", "--holdout", "0"], "holdout 0.0", "a share between 0 and 1"),
        (["--gpus", "2", "--current", "none.json"], "none.json", "check the path"),
        (["--gpus", "2", "--model", "mixtral"], "model 'mixtral'", "did you mean 'mixtral-8x7b'"),
    ],
)
def test_a_bad_value_ends_with_code_2_and_one_line_that_names_it(
    placer: Placer, args: list[str], value: str, remedy: str
) -> None:
    ended = placer("whatif", "t.npz", *args, "--html", "r.html")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert value in line
    assert remedy in line
    assert not Path("r.html").exists()


def test_with_json_a_bad_value_is_an_object_too(placer: Placer) -> None:
    ended = placer("whatif", "t.npz", "--gpus", "two", "--json")
    assert (ended.code, ended.json["status"]) == (2, "error")
    assert "--gpus 'two'" in ended.json["reason"]


def test_an_option_that_is_none_ends_with_code_2(placer: Placer) -> None:
    ended = placer("whatif", "t.npz", "--widths", "2")
    assert (ended.code, ended.out) == (2, "")
    assert "--widths" in ended.err


def test_every_other_width_shows_what_it_takes_to_come_from_the_current_plan(
    placer: Placer,
) -> None:
    placer("plan", "t.npz", "--gpus", "2", "--out", "p.json")
    args = ("whatif", "t.npz", "--gpus", "2,4", "--current", "p.json")
    shown = placer(*args)
    assert shown.out.count("resized from the current plan") == 1
    told = placer(*args, "--json", "--html", "r.html").json["cases"]
    assert [case["resize"] and case["resize"]["problem"] for case in told] == [None, None]
    assert told[0]["resize"] is None
    assert told[1]["resize"]["copied"] > 0
    assert "Changes of width" in Path("r.html").read_text(encoding="utf-8")
    placer("whatif", "t.npz", "--gpus", "4", "--html", "r.html")
    assert "Changes of width" not in Path("r.html").read_text(encoding="utf-8")
