"""What the limits and efforts of `placer plan` change, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from placer.files.plans import read_plan
from placer.files.routing import write_trace
from placer.objective import SOLVERS
from tests.builders import a_model, random_trace
from tests.cli.conftest import Ended, Placer

HERE = ("t.npz", "--gpus", "4", "--redundant", "8")


@pytest.fixture
def running(placer: Placer) -> Placer:
    """``placer`` where linear.json runs: experts in order, then the first half again."""
    assert placer("plan", *HERE, "--optimizer", "linear", "--out", "linear.json").code == 0
    return placer


def test_no_more_slots_move_than_max_moved_allows(running: Placer) -> None:
    def moved(most: str) -> float:
        ended = running("plan", *HERE, "--current", "linear.json", "--max-moved", most, "--json")
        return float(ended.json["moved_share"])

    assert 0 < moved("0.1") <= 0.1 < moved("1") <= 1


def test_an_optimizer_that_moves_more_than_it_may_is_told_of(running: Placer) -> None:
    words = ("--current", "linear.json", "--max-moved", "0.1", "--optimizer")
    for name, is_told in (("eplb", True), ("joint", False)):
        ended = running("plan", *HERE, *words, name, "--horizon", "1e9")
        assert ended.code == 0
        assert (f"{name} does not know --max-moved 0.1: it moves" in ended.err) == is_told


def test_with_max_moved_0_nothing_moves(running: Placer) -> None:
    ended = running("plan", *HERE, "--current", "linear.json", "--max-moved", "0", "--json")
    assert (ended.code, ended.json["status"]) == (3, "hold")
    assert "no expert would move" in ended.json["reason"]


def test_what_may_move_more_is_never_lost(placer: Placer) -> None:
    small = ("t.npz", "--gpus", "4")
    assert placer("plan", *small, "--optimizer", "linear", "--out", "linear4.json").code == 0
    for most in ("0.3", "0.5", "1"):
        ended = placer("plan", *small, "--current", "linear4.json", "--max-moved", most, "--json")
        assert (ended.code, ended.json["moved_share"] <= float(most)) == (0, True)


def test_a_guard_shows_what_becomes_of_the_mixed_traffic(placer: Placer) -> None:
    plain, mixed = (placer("plan", *HERE, *more, "--json").json for more in ((), ("--guard", ".3")))
    assert plain["guarded"] is None
    assert mixed["guarded"]["balancedness"] > mixed["balancedness"]  # 30% of it is even
    shown = placer("plan", *HERE, "--guard", "0.3", "--html", "p.html").out
    assert shown.count("guarded,") == 2
    assert "with 30% unknown traffic the MoE layers" in " ".join(shown.split())
    assert "guarded, after" in Path("p.html").read_text()


def test_homes_are_planned_only_if_a_scheduler_is_there(placer: Placer) -> None:
    many = replace(random_trace(5, tokens=400, experts=8), seq_lens=np.full(40, 10))
    write_trace(Path("many.npz"), many, a_model(2, 8, 2))
    here = ("--gpus", "4", "--dispatch", "dedup", "--out", "p.json")
    ended = placer("plan", "many.npz", *here, "--homes", "--holdout", "0.5")
    homes = read_plan(Path("p.json")).homes
    assert homes is not None
    assert len(homes.shares) == 20  # half of the requests, each a cluster of its own
    for said in (ended.out, placer("show", "p.json").out):
        assert "requests of 20 clusters have homes" in " ".join(said.split())
    assert placer("plan", "many.npz", *here).code == 0
    assert read_plan(Path("p.json")).homes is None


def test_homes_need_requests(placer: Placer) -> None:
    placer("profile", "t.npz", "--out", "plain.npz")
    placer("profile", "t.npz", "--out", "clustered.npz", "--clusters")
    here = ("--gpus", "4", "--dispatch", "dedup", "--homes")
    refused = placer("plan", "plain.npz", *here)
    assert (refused.code, "--homes needs requests" in refused.err) == (2, True)
    assert placer("plan", "clustered.npz", *here).code in (0, 3)


def test_within_a_horizon_of_0_nothing_pays(running: Placer) -> None:
    ended = running("plan", *HERE, "--current", "linear.json", "--horizon", "0", "--json")
    assert (ended.code, ended.json["status"]) == (3, "hold")


def test_a_plan_says_how_it_was_solved(placer: Placer) -> None:
    placer("plan", *HERE, "--solver", "cbc", "--gap", "0.1", "--time-limit", "5", "--out", "p.json")
    provenance = read_plan(Path("p.json")).provenance
    assert provenance is not None
    assert provenance.options["solver"] == "cbc"
    assert (provenance.options["gap"], provenance.options["time_limit_s"]) == (0.1, 5)


def test_a_short_horizon_holds_what_a_long_one_plans(running: Placer) -> None:
    def planned(horizon: str) -> Ended:
        args = ("--optimizer", "eplb", "--current", "linear.json", "--horizon", horizon)
        return running("plan", *HERE, *args, "--json")

    soon = planned("0.000001")
    assert (soon.code, soon.json["status"]) == (3, "hold")
    assert "in 1e-06 s" in soon.json["reason"]
    assert "does not pay within the horizon" in soon.json["reason"]
    assert (planned("60").code, planned("60").json["status"]) == (0, "planned")


def test_survive_node_keeps_every_expert_on_two_nodes(placer: Placer) -> None:
    def fewest_nodes(*more: str) -> int:
        """Nodes that hold the expert which the fewest of them hold."""
        placer("plan", *HERE, "--nodes", "2", *more, "--out", "p.json")
        copies = read_plan(Path("p.json")).placement.copies  # [layers, experts, gpus]
        return int((copies.reshape(2, 8, 2, 2).sum(axis=3) > 0).sum(axis=2).min())

    assert fewest_nodes() == 1
    assert fewest_nodes("--survive-node") == 2


def test_survive_node_clashes_with_a_single_node_and_with_too_few_slots(placer: Placer) -> None:
    alone = placer("plan", *HERE, "--nodes", "1", "--survive-node", "--json")
    assert (alone.code, alone.json["status"]) == (4, "infeasible")
    assert "use --nodes 2 or more" in alone.json["reason"]
    bare = placer("plan", "t.npz", "--gpus", "4", "--nodes", "2", "--survive-node", "--json")
    assert (bare.code, bare.json["status"]) == (4, "infeasible")
    assert "use --redundant 8 or more" in bare.json["reason"]


def crossings(placer: Placer, *more: str) -> str:
    """What exflow notes of 12 experts on 3 GPUs: more splits than it lists, few for a solver."""
    model = replace(a_model(experts=12, top_k=2), hidden=4096, moe_intermediate=2048)
    write_trace(Path("12.npz"), random_trace(0, tokens=200, experts=12), model)
    ended = placer("plan", "12.npz", "--gpus", "3", "--optimizer", "exflow", *more)
    assert ended.code == 0
    (note,) = [line for line in ended.err.splitlines() if "hops a token" in line]
    return note


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solver_asked_for_is_the_one_that_answers(placer: Placer, solver: str) -> None:
    assert crossings(placer, "--solver", solver, "--gap", "0.9").endswith(f"within gap ({solver})")


def test_a_gap_of_nothing_is_proven_optimal(placer: Placer) -> None:
    assert crossings(placer, "--gap", "0").endswith("optimal (highs)")


def test_a_time_limit_ends_the_search_with_the_best_so_far(placer: Placer) -> None:
    assert crossings(placer, "--time-limit", "0").endswith("out of time (highs)")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-moved", "1.5"),
        ("--max-moved", "-0.1"),
        ("--max-moved", "half"),
        ("--max-moved", "nan"),
        ("--horizon", "-1"),
        ("--horizon", "nan"),
        ("--horizon", "soon"),
        ("--horizon", "inf"),
        ("--guard", "-1"),
        ("--guard", "1.1"),
        ("--guard", "nan"),
        ("--overlap", "-0.1"),
        ("--overlap", "2"),
        ("--overlap", "nan"),
        ("--busy", "0"),
        ("--busy", "1.5"),
        ("--busy", "nan"),
        ("--seed", "-1"),
        ("--gap", "-0.1"),
        ("--gap", "nan"),
        ("--gap", "inf"),
        ("--time-limit", "-1"),
        ("--time-limit", "nan"),
        ("--time-limit", "inf"),
        ("--time-limit", "long"),
        ("--solver", "gurobi"),
        ("--survive-node", "--gap"),  # a flag takes no value, and then --gap has none
    ],
)
def test_a_bad_value_ends_with_code_2_names_its_option_and_writes_nothing(
    placer: Placer, option: str, value: str
) -> None:
    ended = placer("plan", *HERE, "--out", "p.json", option, value)
    assert (ended.code, ended.out) == (2, "")
    assert (value if option == "--survive-node" else option) in ended.err
    assert not Path("p.json").exists()


def test_an_unknown_solver_is_answered_with_those_there_are(placer: Placer) -> None:
    error = placer("plan", *HERE, "--solver", "gurobi").err
    for part in ("gurobi", *SOLVERS):
        assert part in error
