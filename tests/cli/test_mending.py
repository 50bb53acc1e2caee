"""`placer plan --current` of maps that break a rule, from other engines' files and by hand."""

import json
from pathlib import Path

import pytest

from placer.files.plans import read_plan
from placer.files.routing import write_trace
from tests.builders import random_trace
from tests.cli.conftest import Ended, Placer

# 3 layers x 6 slots of 4 experts on 2 GPUs, as an engine's own balancer leaves them.
TWICE = [[0, 1, 2, 3, 0, 1], [2, 1, 0, 3, 3, 2], [1, 1, 2, 3, 0, 2]]
LOST = [[0, 1, 2, 3, 0, 1], [2, 1, 0, 1, 0, 2], [1, 0, 2, 3, 0, 2]]


@pytest.fixture
def stands(placer: Placer) -> Placer:
    """``placer`` with what runs in twice.json and lost.json."""
    write_trace(Path("r.npz"), random_trace(0, tokens=400, layers=3))
    for name, rows in (("twice", TWICE), ("lost", LOST)):
        placement = {"gpus": 2, "experts": 4, "physical_to_logical": rows}
        file = {"format": "placer.plan", "version": 1, "placement": placement}
        Path(f"{name}.json").write_text(json.dumps(file))
    return placer


def planned(stands: Placer, current: str, *more: str) -> Ended:
    here = ("--gpus", "2", "--redundant", "2", "--current", f"{current}.json")
    return stands("plan", "r.npz", *here, "--json", "--out", "p.json", *more)


def test_a_second_copy_is_replaced_if_that_many_slots_may_move(stands: Placer) -> None:
    refused = planned(stands, "twice", "--max-moved", "0.1", "--horizon", "1e6")
    assert (refused.code, refused.json["status"]) == (4, "infeasible")
    assert "needs --max-moved 0.12 or more, or --allow-duplicates" in refused.json["reason"]
    for enough in ("0.12", "1"):
        ended = planned(stands, "twice", "--max-moved", enough, "--horizon", "1e6")
        assert (ended.code, ended.json["status"]) == (0, "planned")
        assert ended.json["reason"].startswith("mends: expert 3 of layer 1 was on GPU 1 more than")
        assert 2 <= ended.json["moved"] <= float(enough) * 18
        assert stands("check", "p.json").code == 0
    assert planned(stands, "twice", "--allow-duplicates", "--max-moved", "0.1").code in (0, 3)


def test_a_lost_expert_is_found_again_whatever_the_horizon(stands: Placer) -> None:
    ended = planned(stands, "lost", "--horizon", "0")
    assert (ended.code, ended.json["moved"]) == (0, 1)
    assert ended.json["reason"].startswith("mends: expert 3 of layer 1 was lost; 1 moved slots")
    (move,) = read_plan(Path("p.json")).moves
    assert (move.layer, move.expert, move.source) == (1, 3, None)
    assert stands("check", "p.json").code == 0
    assert "layer 1 expert 3: checkpoint -> GPU" in stands("show", "p.json").out
    assert stands("export", "p.json", "--format", "vllm", "--out", "v.json").code == 0
    refused = planned(stands, "lost", "--max-moved", "0")
    assert (refused.code, refused.json["status"]) == (4, "infeasible")
    assert refused.json["reason"].endswith("needs --max-moved 0.056 or more")


def test_a_lost_expert_has_no_score(stands: Placer) -> None:
    ended = stands("score", "lost.json", "--trace", "r.npz")
    assert ended.code == 2
    assert "no slot of layer 1 holds expert 3: its tokens cannot be served" in ended.err


def test_the_page_says_where_a_lost_expert_comes_from(stands: Placer) -> None:
    assert planned(stands, "lost", "--html", "p.html").code == 0
    assert "<td>checkpoint</td><td>GPU " in Path("p.html").read_text()
