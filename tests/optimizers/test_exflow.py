"""ExFlow's least crossings, held against trying everything and against the paper's programme."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.arrays import IntArray
from placer.checks import violations
from placer.cost import score
from placer.cost.traffic import measured
from placer.errors import RoutingError
from placer.objective import SOLVERS, Effort, Objective, Solver
from placer.optimizers import optimizer
from placer.optimizers.exflow import every_split, split
from placer.optimizers.exflow.chain import (
    Chain,
    Counts,
    fill,
    grown,
    join,
    kept,
    most_kept,
    refined,
    search,
)
from placer.optimizers.exflow.programme import chain_of, crossing_programme, values_of
from placer.placement import EMPTY
from placer.problem import Problem
from placer.profile import Profile
from placer.solver import Programme
from placer.trace import Trace
from tests.builders import a_placement, a_problem, a_trace, loads, random_trace, worlds

every_solver = pytest.mark.parametrize("solver", SOLVERS)


def random_counts(seed: int, experts: tuple[int, ...]) -> Counts:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 20, pair).astype(float) for pair in pairwise(experts)]


def crossing(counts: Counts, chain: Chain) -> float:
    return float(sum(count.sum() for count in counts)) - kept(counts, chain)


def labelled(experts: int, parts: int) -> list[IntArray]:
    """Every split of a layer, by trying every label."""
    sizes = {experts // parts, -(-experts // parts)}
    return [
        np.array(labels)
        for labels in product(range(parts), repeat=experts)
        if {labels.count(part) for part in range(parts)} <= sizes
    ]


def fewest_crossings(counts: Counts, parts: int) -> float:
    every = [labelled(n, parts) for n in (*map(len, counts), counts[-1].shape[1])]
    return min(crossing(counts, list(chain)) for chain in product(*every))


def token_programme(trace: Trace, parts: int) -> Programme:
    """As the paper has it: for every token and layer, whether it changes GPU."""
    programme = Programme()
    on = [programme.binary((trace.experts, parts)) for _ in range(trace.layers)]
    for layer in on:
        for expert in layer:
            programme.hold(expert, 1.0, 1, 1)
        for part in layer.T:
            programme.hold(part, 1.0, trace.experts // parts, trace.experts // parts)
    for token in trace.expert_ids[:, :, 0]:
        path = [member[expert] for member, expert in zip(on, token, strict=True)]
        for here, there in pairwise(path):
            change = programme.binary((1,), cost=1.0)
            for part in range(parts):
                programme.hold([change[0], here[part], there[part]], [1, -1, 1], low=0)
    return programme


@every_solver
def test_counting_pairs_is_as_good_as_following_tokens(solver: Solver) -> None:
    trace = random_trace(1, tokens=12, layers=3, experts=4, top_k=1)
    problem = a_problem(trace)
    assert problem.profile.transitions is not None
    counts = list(problem.profile.transitions)
    by_pair, _ = crossing_programme(counts, parts=2)
    exactly = Effort(solver, gap=0.0)
    answers = [by_pair.solve(exactly), token_programme(trace, parts=2).solve(exactly)]
    expected = pytest.approx(fewest_crossings(counts, parts=2))
    assert [answer.objective for answer in answers] == [expected, expected]
    assert len(by_pair.costs) == 3 * 8 + 2 * 16  # whatever the tokens


@every_solver
@pytest.mark.parametrize("parts", [2, 3])
def test_all_ways_to_solve_a_chain_agree(solver: Solver, parts: int) -> None:
    counts = random_counts(parts, (6, 6) if parts == 3 else (4, 4, 4))
    best = fewest_crossings(counts, parts)
    pools = every_split([len(counts[0])] * (len(counts) + 1), parts)
    assert pools is not None
    exact = join(counts, pools, parts)
    assert crossing(counts, exact) == best

    programme, on = crossing_programme(counts, parts)
    answer = programme.solve(Effort(solver, gap=0.0), values_of(counts, exact, parts))
    assert answer.values is not None
    found = chain_of(answer.values, on)
    assert (answer.status, crossing(counts, found)) == ("optimal", best)
    for layer in on:
        assert (answer.values[layer].sum(axis=1) == 1).all()
        assert (answer.values[layer].sum(axis=0) == len(layer) / parts).all()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    experts=st.lists(st.integers(1, 5), min_size=2, max_size=3),
    parts=st.integers(1, 3),
)
def test_the_shortest_path_is_as_good_as_trying_everything(
    seed: int, experts: list[int], parts: int
) -> None:
    counts = random_counts(seed, tuple(experts))
    pools = every_split(experts, parts)
    assert pools is not None
    best = fewest_crossings(counts, parts)
    assert crossing(counts, join(counts, pools, parts)) == best
    total = sum(count.sum() for count in counts)
    assert total - most_kept(counts, parts) <= best + 1e-9


@given(st.integers(0, 2**16))
def test_of_top2_tokens_no_placement_without_replicas_has_fewer_hops(seed: int) -> None:
    trace = random_trace(seed, layers=2)
    found = optimizer("exflow")(a_problem(trace)).placement
    rows = [[0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2], [2, 3, 0, 1], [1, 3, 0, 2], [1, 2, 0, 3]]
    hops = [measured(trace, a_placement(pair), "dedup").hops for pair in product(rows, rows)]
    fewest = min(each for each in hops if each is not None)
    assert measured(trace, found, "dedup").hops == pytest.approx(fewest)


def test_more_parts_than_orders_are_tried_for_are_matched_as_well() -> None:
    # One expert a GPU: each token's next expert may stand where it is.
    counts: Counts = [np.roll(np.eye(7), shift, axis=1) * 10 for shift in (1, 3)]
    pools = every_split([7, 7, 7], 7)
    assert pools is not None
    assert crossing(counts, join(counts, pools, 7)) == 0


@given(st.integers(0, 2**16), st.integers(1, 9), st.integers(1, 5))
def test_parts_are_filled_evenly(seed: int, experts: int, parts: int) -> None:
    gain = np.random.default_rng(seed).random((experts, parts))
    size = np.bincount(fill(gain), minlength=parts)
    assert size.max() - size.min() <= 1


def test_refining_only_wins_and_growing_follows() -> None:
    counts = random_counts(0, (12, 12, 12, 12))
    start = [np.arange(12) % 4] * 4
    assert kept(counts, refined(counts, start, 4)) > kept(counts, start)
    ring: Counts = [np.roll(np.eye(12), 5, axis=1)] * 3
    assert crossing(ring, grown(ring, 2, np.arange(12) % 4, 4)) == 0


def test_searching_comes_near_what_is_known_to_be_best() -> None:
    counts = random_counts(3, (8, 8, 8, 8, 8))
    pools = every_split([8] * 5, 4)
    assert pools is not None
    start = [np.arange(8) // 2] * 5
    best = kept(counts, join(counts, pools, 4))
    found = kept(counts, search(counts, 4, tries=24, starts=[start], seed=0))
    assert 0.99 * best < found <= best


def test_what_cannot_be_listed_is_searched_and_bounded() -> None:
    counts = random_counts(0, (32, 32, 32))
    start = [np.arange(32) // 8] * 3
    stage = split(counts, start, 4, Effort(iterations=20_000), seed=0)
    assert stage.how == "local search"
    assert 0 < stage.bound < stage.crossing < crossing(counts, start)
    again = split(counts, start, 4, Effort(iterations=20_000), seed=0)
    assert [layer.tolist() for layer in again.chain] == [layer.tolist() for layer in stage.chain]


@every_solver
def test_a_solver_without_time_leaves_what_was_searched(solver: Solver) -> None:
    counts = random_counts(0, (16, 16))
    start = [np.arange(16) // 4] * 2
    effort = Effort(solver, gap=0.0, time_limit_s=0.2, iterations=20_000)
    stage = split(counts, start, 4, effort, seed=0)
    assert stage.how == f"out of time ({solver})"
    assert 0 < stage.bound <= stage.crossing < crossing(counts, start)
    assert all((np.bincount(layer) == 4).all() for layer in stage.chain)


def test_a_search_that_meets_its_bound_is_optimal() -> None:
    counts: Counts = [np.roll(np.eye(24), 5, axis=1)] * 2
    stage = split(counts, [np.arange(24) // 6] * 3, 4, Effort(), seed=0)
    assert (stage.crossing, stage.how) == (0, "optimal")


# The optimizer


def followers(layers: int, experts: int) -> Profile:
    """Most tokens go on from expert i to i + 1."""
    counts = np.ones((layers - 1, experts, experts)) + 9 * np.roll(np.eye(experts), 1, axis=1)
    load = np.concatenate([counts.sum(axis=2), counts[-1:].sum(axis=1)])
    return Profile(load, top_k=1, tokens=load[0].sum(), sequences=1, transitions=counts)


def test_mixtral_is_proven_optimal() -> None:
    problem = a_problem(followers(layers=32, experts=8), gpus=4, objective=Objective("coherent"))
    solution = optimizer("exflow")(problem)
    # 9 + 1 of 17 tokens of an expert can stay, and 1 that goes to the other expert of its GPU.
    assert solution.notes == ("between GPUs: 10.94 hops a token, bound 10.94: optimal",)
    assert score(problem, solution.placement).hops == pytest.approx(31 * (1 - 11 / 17))


def test_nodes_come_first() -> None:
    # Experts 0 and 1 feed 0 and 1, mostly 1 and 0; 2 and 3 likewise.
    count = np.kron(np.eye(2), np.array([[1.0, 9], [9, 1]]))
    load = np.array([count.sum(axis=1), count.sum(axis=0)])
    profile = Profile(load, 1, tokens=40, sequences=1, transitions=count[None])
    solution = optimizer("exflow")(a_problem(profile, gpus=4, nodes=2))
    assert solution.notes == (
        "between nodes: 0 hops a token, bound 0: optimal",
        "between GPUs of a node: 0.1 hops a token, bound 0.1: optimal",
    )
    assert solution.placement.physical_to_logical.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]


def test_stages_add_up_to_the_hops_that_are_scored() -> None:
    problem = a_problem(random_trace(0, tokens=200, layers=4, experts=8), gpus=4, nodes=2)
    solution = optimizer("exflow")(problem)
    by_stage = [float(note.split(": ")[1].split(" hops")[0]) for note in solution.notes]
    assert score(problem, solution.placement).hops == pytest.approx(sum(by_stage), rel=1e-3)


@settings(deadline=None, max_examples=50)
@given(worlds())
def test_exflow_always_passes_the_checks(problem: Problem) -> None:
    solution = optimizer("exflow")(problem)
    placement = solution.placement
    assert violations(placement, problem.objective, problem.model, problem.topology) == []
    assert (placement.replicas == 1).all()
    assert (placement.copies.sum(axis=1) == problem.model.experts // problem.topology.gpus).all()
    again = optimizer("exflow")(problem)
    assert (again.placement.digest, again.notes) == (placement.digest, solution.notes)


def test_one_layer_stays_as_it_is() -> None:
    problem = a_problem(a_trace([[[0]], [[3]]]))
    assert optimizer("exflow")(problem).placement.digest == problem.linear.digest


def test_gpus_that_do_not_divide_the_experts_hold_one_more_or_less() -> None:
    problem = a_problem(followers(layers=3, experts=5), slots=6)
    solution = optimizer("exflow")(problem)
    assert violations(solution.placement, problem.objective, problem.model) == []
    table = solution.placement.physical_to_logical
    assert (table == EMPTY).sum(axis=1).tolist() == [1, 1, 1]
    assert solution.notes[-1] == "exflow has no replicas: 1 slots a layer are empty"


def test_loads_alone_are_not_enough() -> None:
    with pytest.raises(RoutingError, match=r"exflow needs transitions .*: give a trace"):
        optimizer("exflow")(a_problem(loads([[1, 2, 3, 4]])))
