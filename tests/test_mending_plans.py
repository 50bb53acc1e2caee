"""What plans make of a running map that breaks a rule."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from placer.checks import violations
from placer.cost import moves, score
from placer.errors import PlacementError
from placer.files.plans import parse_plan, plan_text
from placer.objective import Objective
from placer.placement import EMPTY, Placement
from placer.plan import Hold, Infeasible, Plan, Provenance, Solution
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.trace import Trace
from tests.builders import a_model, a_placement, a_problem, loads, random_trace

EVEN = [10_000] * 4
# Of its 12 slots two are broken: GPU 0 holds expert 0 twice, and nobody expert 3 of layer 1.
BROKEN = a_placement([[0, 0, 1, 2, 3, 1], [0, 1, 2, 2, 1, 0]])


def stands(current: Placement, load: Sequence[float] = EVEN, **objective: bool | float) -> Problem:
    """Where that map runs; ``load`` is each layer's."""
    found = Objective(**{"max_moved": 1.0, **objective})  # type: ignore[arg-type]
    profile = loads([load] * current.layers)
    problem = a_problem(profile, current.slots, current.gpus, current.nodes, found, current=current)
    return replace(problem, model=replace(problem.model, hidden=4096, moe_intermediate=2048))


def answer(
    problem: Problem, optimizer: str = "joint", fit: Trace | None = None
) -> Plan | Hold | Infeasible:
    solution = solve(problem, optimizer)
    if isinstance(solution, Infeasible):
        return solution
    return make_plan(problem, solution, Provenance(optimizer), fit)


def planned(problem: Problem, optimizer: str = "joint", fit: Trace | None = None) -> Plan:
    plan = answer(problem, optimizer, fit)
    assert isinstance(plan, Plan)
    return plan


@pytest.mark.parametrize("optimizer", ["joint", "eplb"])
def test_it_is_mended_though_nothing_pays(optimizer: str) -> None:
    plan = planned(stands(BROKEN, horizon_s=0.0, max_moved=0.17), optimizer)
    assert plan.reason.startswith(
        "mends: expert 3 of layer 1 was lost; expert 0 of layer 0 was on GPU 0 more than once; "
    )
    assert plan.mends == tuple(plan.reason.removeprefix("mends: ").split("; ")[:2])
    assert plan.move_cost is not None
    assert plan.move_cost.moved == len(plan.moves) == 2
    assert violations(plan.placement, plan.objective, plan.model, plan.topology) == []
    assert plan.notes[0].startswith("nothing more than mending: ")


def test_what_is_left_of_max_moved_goes_into_speed() -> None:
    # Layer 0 needs one move; both hot experts of layer 1 are on GPU 0.
    broken = a_placement([[0, 1, 2, 3, 0, 0], [0, 1, 2, 0, 1, 3]])
    problem = stands(broken, [90_000, 10_000, 80_000, 10_000])
    bare, bold = planned(replace(problem, objective=Objective(max_moved=1 / 12))), planned(problem)
    assert len(bare.moves) == 1 < len(bold.moves)
    steps = [score(problem, plan.placement).step_s for plan in (bare, bold)]
    assert steps[1] < steps[0]


def test_what_does_not_fit_says_how_much_would() -> None:
    # Two of 18 slots, 0.111: expert 3 twice on GPU 1 in layer 1, expert 1 on GPU 0 in layer 2.
    rows = [[0, 1, 2, 3, 0, 1], [2, 1, 0, 3, 3, 2], [1, 1, 2, 3, 0, 2]]
    problem = a_problem(
        loads([[1, 1, 1, 1]] * 3), 6, objective=Objective(), current=a_placement(rows)
    )
    refused = answer(problem)
    assert isinstance(refused, Infeasible)
    assert refused.reason == (
        "expert 3 of layer 1 was on GPU 1 more than once (and 1 more): mending the current plan "
        "moves 2 of 18 slots: needs --max-moved 0.12 or more, or --allow-duplicates"
    )
    assert isinstance(answer(replace(problem, objective=Objective(max_moved=0.12))), Plan)
    assert not isinstance(
        answer(replace(problem, objective=Objective(allow_duplicates=True))), Infeasible
    )


def test_only_what_would_do_is_proposed() -> None:
    lost = answer(stands(a_placement([[0, 1, 2, 0], [0, 1, 2, 3]]), max_moved=0.1))
    assert isinstance(lost, Infeasible)
    assert lost.reason.endswith("moves 1 of 8 slots: needs --max-moved 0.13 or more")
    here = a_placement([[0, 1, 0, 1, 2, 3, 2, 3]] * 2, gpus=4, nodes=2)
    alone = answer(stands(here, max_moved=0.1, survive_node=True))
    assert isinstance(alone, Infeasible)
    assert alone.reason.endswith("needs --max-moved 0.5 or more, or leave out --survive-node")


def test_a_lost_expert_comes_from_the_checkpoint_over_the_network() -> None:
    problem = stands(BROKEN, horizon_s=0.0)
    plan = planned(problem)
    move = next(move for move in plan.moves if move.layer == 1)
    assert (move.expert, move.source, move.origin) == (3, None, "checkpoint")
    assert move.reason == "no GPU held it: its tokens could not be served"
    assert plan.move_cost is not None
    assert plan.move_cost.network_bytes == problem.model.expert_bytes
    assert parse_plan(plan_text(plan), "it").moves == plan.moves
    assert parse_plan(plan_text(plan), "it").mends == plan.mends


def test_a_map_that_lost_an_expert_has_no_figures_and_the_mended_one_stands_for_it() -> None:
    trace = random_trace(0, experts=4)
    problem = a_problem(trace, 6, objective=Objective(max_moved=1.0, horizon_s=0.0), current=BROKEN)
    for tokens in (None, trace):
        with pytest.raises(PlacementError, match="no slot of layer 1 holds expert 3: its tokens"):
            score(problem, BROKEN, tokens)
        plan = planned(problem, fit=tokens)
        assert plan.fit is not None
        assert plan.fit.before == plan.fit.after == score(problem, plan.placement, tokens)
        assert "moved slots win no time" in plan.reason


def test_a_second_copy_has_figures_before_and_after() -> None:
    problem = stands(a_placement([[0, 0, 1, 2, 3, 1]]), [80_000, 10_000, 50_000, 10_000])
    plan = planned(problem)
    assert plan.fit is not None
    assert plan.fit.before == score(problem, problem.start)
    assert plan.fit.before.balancedness == pytest.approx(75 / 85)
    assert plan.fit.after == score(problem, plan.placement)


def test_joint_fills_empty_slots_where_that_pays_and_never_trips_over_them() -> None:
    running = a_placement([[0, 1, EMPTY, 2, 3, EMPTY]])
    problem = stands(running, [90_000, 10_000, 10_000, 10_000])
    plan = planned(problem)
    assert plan.mends == ()
    assert plan.placement.replicas[0, 0] == 2
    assert EMPTY not in plan.placement.physical_to_logical
    kept = solve(replace(problem, objective=Objective(max_moved=0.2)), "joint")
    assert isinstance(kept, Solution)
    assert np.array_equal(kept.placement.copies, problem.start.copies)


def test_torn_groups_end_on_one_node() -> None:
    model = a_model(layers=1, experts=8, groups=4)
    objective = Objective(keep_groups=True, max_moved=0.5)
    current = a_placement([[0, 2, 1, 3, 4, 6, 5, 7]], 8, gpus=4, nodes=2)
    torn = a_placement([[0, 2, 1, 4, 3, 6, 5, 7]], 8, gpus=4, nodes=2)
    problem = a_problem(
        loads([[100] * 8]), gpus=4, nodes=2, objective=objective, model=model, current=current
    )
    assert isinstance(answer(problem), Hold)
    plan = planned(replace(problem, current=torn))
    assert plan.reason.startswith("mends: group 1 of layer 0 was spread over nodes (and 1 more); ")
    assert moves.arrivals(torn, plan.placement).sum() == 2


def test_too_few_experts_on_a_node_for_its_slots_is_a_clash() -> None:
    model = a_model(layers=1, experts=4, groups=2)
    objective = Objective(keep_groups=True)
    problem = a_problem(loads([[1] * 4]), 6, nodes=2, objective=objective, model=model)
    clash = solve(problem, "joint")
    assert isinstance(clash, Infeasible)
    assert "3 slots a GPU clash with 2 experts of its node" in clash.reason
    assert "use --redundant 0 or less" in clash.reason


def test_the_hold_out_compares_with_the_mended_map_too() -> None:
    trace = random_trace(1, tokens=400, experts=4)
    problem = a_problem(trace, 6, objective=Objective(max_moved=1.0), current=BROKEN)
    solution = solve(problem, "joint")
    assert isinstance(solution, Solution)
    plan = make_plan(problem, solution, Provenance("joint"), trace, trace)
    assert isinstance(plan, Plan)
    assert plan.fit == plan.holdout is not None


def test_what_first_moves_win_counts_mending_and_leaves_out_what_it_does_not_fit() -> None:
    # Of 24 slots, mending takes one, 4.2%; layer 1 has both hot experts on GPU 0.
    rows = [[0, 1, 2, 3, 0, 0], [0, 1, 2, 0, 1, 3], [0, 1, 2, 3, 1, 0], [0, 1, 2, 3, 0, 1]]
    problem = stands(a_placement(rows), [90_000, 10_000, 80_000, 10_000], horizon_s=1e9)
    plan = planned(problem)
    assert [row.share for row in plan.frontier] == [0.05, 0.1, 0.2]
    assert [row.moved for row in plan.frontier if row.share == 0.05] == [1]
    assert all(1 <= row.moved <= row.share * 24 for row in plan.frontier)
    mended = planned(replace(problem, objective=Objective(max_moved=0.05)))
    assert mended.move_cost is not None
    assert mended.move_cost.moved == 1
