"""MoETuner with clusters of different sizes, within each GPU's memory over all layers."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.checks import violations
from placer.cost import moves, score
from placer.cost.memory import gpu_bytes, slots_that_fit
from placer.errors import PlacementError
from placer.objective import DISPATCHES, Dispatch, Effort, Objective
from placer.optimizers import OPTIMIZERS, UNEVEN
from placer.optimizers.moetuner.clusters import packed
from placer.placement import EMPTY, Placement, widened
from placer.plan import Infeasible, Plan, Provenance, Solution
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.profile import Profile
from placer.schedule import Budget, faults, fewest_moves, schedule
from placer.trials import Case, Study, evaluate
from tests.builders import a_model, a_placement, a_problem, a_topology, worlds

FREE = Objective(uneven=True, memory_share=1.0)
EXPERT = a_model().expert_bytes
# Of both layers, expert 0 is as hot as the three others. It is followed by itself.
HOT = Profile(
    np.array([[6.0, 2, 2, 2]] * 2),
    top_k=1,
    tokens=12,
    sequences=1,
    transitions=np.diag([6.0, 2, 2, 2])[None],
)


def with_room(problem: Problem, experts: int) -> Problem:
    """GPUs whose memory holds so many experts of all layers."""
    gpu = replace(problem.topology.gpu, hbm_bytes=experts * EXPERT)
    return replace(problem, topology=replace(problem.topology, gpu=gpu))


def placed(problem: Problem) -> Placement:
    solution = solve(problem, "moetuner")
    assert isinstance(solution, Solution)
    return solution.placement


def random_profile(seed: int) -> Profile:
    """Two layers of four experts."""
    flow = np.random.default_rng(seed).integers(1, 10_000, (1, 4, 4)).astype(float)
    load = np.stack([flow[0].sum(axis=1), flow[0].sum(axis=0)])
    return Profile(load, 1, tokens=float(flow.sum()), sequences=1, transitions=flow)


def by_trying_everything(profile: Profile, room: int) -> tuple[float, float]:
    """The least imbalance, and with it the least cost of ILP 2, on two GPUs that hold ``room``.

    Where the most even clusters do not fit, the largest may have one expert less.
    """
    assert profile.transitions is not None
    flow = profile.transitions[0]
    rows = [np.array(row) for row in product((0, 1), repeat=4)]
    for most in (3, 2):
        found = []
        for at in product([row for row in rows if 4 - most <= row.sum() <= most], repeat=2):
            on = np.eye(2)[np.stack(at)]
            off = np.abs(np.einsum("le,leg->lg", profile.load, on) @ [1, -1]).sum()
            cost = float(np.fliplr(on[0].T @ flow @ on[1]).diagonal().max())
            found.append((float(off), cost, int(on.sum(axis=(0, 1)).max())))
        even = min(off for off, _, _ in found)
        if fitting := [cost for off, cost, held in found if off == even and held <= room]:
            return even, min(fitting)
    raise AssertionError("equal sizes always fit")


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), room=st.sampled_from([4, 5, 6]))
def test_the_optimum_is_that_of_trying_everything(seed: int, room: int) -> None:
    profile = random_profile(seed)
    problem = a_problem(profile, objective=FREE, effort=Effort(gap=0.0))
    on = placed(with_room(problem, room)).copies
    assert profile.transitions is not None
    off = np.abs(np.einsum("le,leg->lg", profile.load, on) @ [1, -1]).sum()
    cost = np.fliplr(on[0].T @ profile.transitions[0] @ on[1]).diagonal().max()
    assert (off, cost) == by_trying_everything(profile, room)
    assert on.sum(axis=(0, 1)).max() <= room


def test_a_hot_expert_stands_alone_in_every_layer() -> None:
    problem = a_problem(HOT, objective=FREE)
    placement = placed(problem)
    assert placement.physical_to_logical.tolist() == [[0, EMPTY, EMPTY, 1, 2, 3]] * 2
    assert score(problem, placement).balancedness == 1
    even = placed(replace(problem, objective=Objective()))
    assert score(problem, even).balancedness == pytest.approx(6 / 8)


def test_memory_bounds_a_gpu_over_all_layers() -> None:
    # Together the hot experts leave six for the other GPU. With room for four they part.
    placement = placed(with_room(a_problem(HOT, objective=FREE), 4))
    assert placement.copies.sum(axis=1).tolist() in ([[1, 3], [3, 1]], [[3, 1], [1, 3]])
    assert gpu_bytes(a_model(), placement).tolist() == [4 * EXPERT] * 2


def test_clusters_shrink_where_no_layout_fits() -> None:
    one_layer = Profile(HOT.load[:1], 1, 12, 1, transitions=np.zeros((0, 4, 4)))
    problem = a_problem(one_layer, objective=FREE)
    assert placed(with_room(problem, 3)).copies.sum(axis=1).tolist() == [[1, 3]]
    assert placed(with_room(problem, 2)).copies.sum(axis=1).tolist() == [[2, 2]]


def test_what_does_not_fit_the_memory_of_all_gpus_is_refused() -> None:
    problem = with_room(a_problem(HOT, objective=FREE), 3)
    with pytest.raises(PlacementError, match="use at least 3 GPUs"):
        solve(problem, "moetuner")


def test_half_a_layer_of_memory_counts_where_gpus_may_differ() -> None:
    topology = with_room(a_problem(HOT), 5).topology  # 2.5 experts of each of two layers
    assert slots_that_fit(a_model(), topology, FREE) == 5
    assert slots_that_fit(a_model(), topology, replace(FREE, uneven=False)) == 4


@settings(deadline=None, max_examples=50)
@given(worlds())
def test_uneven_plans_pass_the_checks_and_repeat(problem: Problem) -> None:
    problem = replace(problem, objective=Objective(uneven=True))
    placement = placed(problem)
    assert violations(placement, problem.objective, problem.model, problem.topology) == []
    assert (placement.replicas == 1).all()
    assert (placement.copies.sum(axis=1) >= 1).all()
    assert placement.slots_per_gpu == placement.copies.sum(axis=1).max()
    assert placed(problem).digest == placement.digest


def test_uneven_clusters_are_at_least_as_even_in_load() -> None:
    problem = a_problem(HOT, objective=FREE)
    even = replace(problem, objective=Objective())
    both = [score(problem, placed(one)).balancedness_min for one in (problem, even)]
    assert both[0] >= both[1]


def test_many_free_clusters_are_packed_in_little_room() -> None:
    # DeepSeek-V3's 256 experts on 32 GPUs: a cluster could have 225.
    load = np.random.default_rng(0).pareto(2, 256)
    held = np.bincount(packed(load, 32, (1, 225)), minlength=32)
    assert held.min() >= 1
    assert held.sum() == 256


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(UNEVEN)))
def test_others_say_that_they_fill_every_gpu_alike(name: str) -> None:
    with pytest.raises(PlacementError, match=f"{name} gives every GPU as many .* moetuner"):
        solve(a_problem(HOT, objective=FREE), name)


# What becomes of the empty slots


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_empty_slots_cost_nothing(dispatch: Dispatch) -> None:
    tight = a_placement([[0, 1, 2, 3]])
    wide = widened(tight, 3)
    assert wide.physical_to_logical.tolist() == [[0, 1, EMPTY, 2, 3, EMPTY]]
    problem = a_problem(random_profile(0), objective=replace(FREE, dispatch=dispatch))
    rows = [np.tile(one.physical_to_logical, (2, 1)) for one in (tight, wide)]
    one, other = (score(problem, problem.placement(row)) for row in rows)
    assert one == other


def test_the_moved_share_is_of_slots_that_hold_an_expert() -> None:
    problem = a_problem(HOT, objective=FREE)
    cost = moves.cost(problem, problem.linear, placed(problem))
    assert (cost.moved, cost.moved_share) == (2, 2 / 8)  # expert 1 of each layer, of 8 experts


def test_moves_are_counted_between_maps_of_any_width() -> None:
    problem = a_problem(HOT, objective=FREE)
    solution = Solution(placed(problem))
    plan = make_plan(problem, solution, Provenance("moetuner"))
    assert isinstance(plan, Plan)
    assert [(move.layer, move.expert, move.gpu) for move in plan.moves] == [(0, 1, 1), (1, 1, 1)]
    # Back to two slots a GPU: what runs has three, and they stay.
    back = fewest_moves(replace(problem, current=solution.placement), problem.linear)
    assert back.shape == solution.placement.shape
    assert (back.copies == problem.linear.copies).all()


def test_names_are_the_same_in_all_layers_since_memory_joins_them() -> None:
    # By layers, both large clusters would keep their GPU, and it would hold six.
    current = a_placement([[0, EMPTY, EMPTY, 1, 2, 3]] * 2)
    parted = a_placement([[0, EMPTY, EMPTY, 1, 2, 3], [1, 2, 3, 0, EMPTY, EMPTY]])
    problem = a_problem(HOT, objective=FREE, current=current)
    assert fewest_moves(problem, parted).copies.sum(axis=(0, 1)).tolist() == [4, 4]


def test_a_wide_map_is_reached_and_left_round_by_round() -> None:
    problem = a_problem(HOT, objective=FREE)
    uneven = placed(problem)
    even = widened(problem.linear, uneven.slots_per_gpu)
    for before, after in ((even, uneven), (uneven, even)):
        budget = Budget(2**30, scratch_slots=0)
        way = schedule(before, after, EXPERT, problem.topology, budget)
        assert faults(way, before, after, EXPERT, budget) == []
        assert way.copies == 2
        assert (way.after.copies == after.copies).all()


def test_what_if_judges_uneven_plans_against_what_runs() -> None:
    study = Study(a_model(), HOT, FREE, current=a_placement([[0, 1, 2, 3]] * 2))
    case = Case(a_topology(), redundant=0, dispatch="allgather")
    assert "leave out --uneven" in evaluate(study, case).problem
    outcome = evaluate(replace(study, optimizer="moetuner"), case)
    assert outcome.after is not None
    assert outcome.after.balancedness == 1
    assert outcome.moved == 2 / 8


def test_redundant_slots_stay_empty_whatever_memory_says() -> None:
    problem = with_room(a_problem(HOT, slots=6, objective=FREE), 4)
    solution = solve(problem, "moetuner")
    assert not isinstance(solution, Infeasible)
    assert solution.placement.filled == 8
