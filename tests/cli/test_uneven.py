"""`--uneven` from plan to check, score, what-if and the engines' files."""

from pathlib import Path

import pytest

from placer.files.plans import read_plan
from placer.formats import FORMATS
from tests.cli.conftest import Placer

HERE = ("t.npz", "--gpus", "4")
UNEVEN = (*HERE, "--optimizer", "moetuner", "--uneven")


@pytest.fixture
def planned(placer: Placer) -> Placer:
    """``placer`` where uneven.json was planned."""
    assert placer("plan", *UNEVEN, "--out", "uneven.json", "--html", "uneven.html").code == 0
    return placer


def test_a_plan_has_as_many_slots_as_its_fullest_gpu_needs(planned: Placer) -> None:
    plan = read_plan(Path("uneven.json"))
    assert plan.objective.uneven
    assert plan.placement.empty > 0
    assert plan.placement.slots_per_gpu == plan.placement.copies.sum(axis=1).max()


def test_it_may_be_applied_and_is_scored_against_experts_in_order(planned: Placer) -> None:
    assert planned("check", "uneven.json").code == 0
    assert planned("plan", *HERE, "--optimizer", "linear", "--out", "linear.json").code == 0
    before = [
        planned("score", plan, "--trace", "t.npz", "--json").json["step_ms_before"]
        for plan in ("uneven.json", "linear.json")
    ]
    assert before[0] == before[1]


def test_what_runs_unevenly_is_planned_from(planned: Placer) -> None:
    ended = planned("plan", *UNEVEN, "--current", "uneven.json", "--json")
    assert (ended.code, ended.json["status"]) == (3, "hold")
    assert "no expert would move" in ended.json["reason"]


@pytest.mark.parametrize("name", FORMATS)
def test_no_engines_file_has_empty_slots(planned: Placer, name: str) -> None:
    ended = planned("export", "uneven.json", "--format", name, "--out", "location")
    assert ended.code == 2
    assert "plan without --uneven" in ended.err
    assert not Path("location").exists()


def test_the_default_optimizer_says_which_one_does(placer: Placer) -> None:
    ended = placer("plan", *HERE, "--uneven")
    assert ended.code == 2
    assert "use --optimizer moetuner" in ended.err


def test_what_if_takes_it_too(placer: Placer) -> None:
    ended = placer("whatif", *UNEVEN, "--json")
    assert ended.code == 0
    [case] = ended.json["cases"]
    assert case["problem"] is None
