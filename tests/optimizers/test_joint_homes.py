"""Placement and requests' homes together: every placement with every assignment as the oracle."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.checks import violations
from placer.cost import score
from placer.cost.homes import homes
from placer.cost.owned import Kinds, cluster_homes, scheduled
from placer.objective import DISPATCHES, Dispatch, Effort, Objective
from placer.optimizers import optimizer
from placer.optimizers.joint import terms
from placer.optimizers.joint.search import accept, seconds_of, settle, weigh
from placer.optimizers.joint.start import start
from placer.optimizers.joint.together import relabelled
from placer.plan import Plan, Provenance, Solution
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace
from tests.builders import a_placement, a_problem, a_trace

DEDUP = Objective("dedup")


def of_requests(trace: Trace, objective: Objective = DEDUP, **more: Any) -> Problem:
    """With clusters, and experts large enough for arithmetic to count."""
    problem = a_problem(trace, objective=objective, **more)
    model = replace(problem.model, hidden=2048, moe_intermediate=1024)
    return replace(problem, profile=of_trace(trace, clustered=True), model=model)


def random_requests(seed: int, requests: int = 4, tokens: int = 6, experts: int = 4) -> Trace:
    """Each of its requests prefers two experts of each of two layers."""
    rng = np.random.default_rng(seed)
    likes = rng.gumbel(size=(requests, 1, 2, experts)) * 2
    ids = np.argsort(-likes - rng.gumbel(size=(requests, tokens, 2, experts)), axis=3)[..., :2]
    return Trace(ids.reshape(-1, 2, 2), np.full(requests, tokens), experts)


def least(problem: Problem) -> float:
    """Seconds of a step of joint's placement without homes."""
    plain = replace(problem, profile=replace(problem.profile, clusters=None))
    return score(problem, optimizer("joint")(plain).placement, problem.trace).step_s


def found_s(problem: Problem) -> float:
    found = optimizer("joint")(problem)
    own = scheduled(problem.profile, found.placement, problem.trace) if found.scheduled else None
    return score(problem, found.placement, problem.trace, homes=own).step_s


def every_step_s(problem: Problem) -> Iterator[float]:
    """Of all placements on two GPUs, with all homes of which none owns more than half."""
    trace = problem.trace
    assert trace is not None
    half = list(combinations(range(trace.experts), trace.experts // 2))
    rows = [[*one, *(e for e in range(trace.experts) if e not in one)] for one in half]
    even = [
        np.array(own)
        for own in product(range(2), repeat=trace.sequences)
        if np.bincount(own, trace.seq_lens, 2).max() <= -(-trace.tokens // 2)
    ]
    for table in product(rows, repeat=trace.layers):
        placement = a_placement(table, trace.experts)
        for own in even:
            yield score(problem, placement, trace, homes=own).step_s


def test_requests_and_their_experts_meet() -> None:
    # Requests of two kinds; tokens of a kind use an expert of each pair alike, (0, 1) or (2, 3) in
    # the first layer and (0, 2) or (1, 3) in the second.
    kind = [[[0, 1], [0, 2]]], [[[2, 3], [1, 3]]]
    trace = a_trace(kind[0] * 4 + kind[1] * 4, seq_lens=[1] * 8)
    problem = of_requests(trace)
    found = optimizer("joint")(problem)
    assert found.scheduled
    own = scheduled(problem.profile, found.placement, trace)
    assert np.bincount(own).tolist() == [4, 4]
    assert score(problem, found.placement, trace, homes=own).dispatch_s == 0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16))
def test_never_worse_than_least_loaded_homes_nor_better_than_trying_everything(seed: int) -> None:
    problem = of_requests(random_requests(seed))
    best = min(every_step_s(problem))
    assert best * (1 - 1e-9) <= found_s(problem) <= least(problem) * (1 + 1e-9)


def test_it_comes_close_to_trying_everything() -> None:
    over = []
    for seed in range(12):
        problem = of_requests(random_requests(seed))
        over.append(found_s(problem) / min(every_step_s(problem)))
    assert np.mean(over) < 1.05


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([1, 2]), st.integers(0, 2), st.booleans())
def test_it_is_valid_and_the_same_again(seed: int, nodes: int, more: int, measured: bool) -> None:
    trace = random_requests(seed, requests=6, experts=8)
    problem = of_requests(trace, gpus=4, nodes=nodes, slots=8 + 4 * more)
    problem = replace(problem, effort=Effort(iterations=3000))
    if not measured:
        problem = replace(problem, trace=None)
    first, second = (optimizer("joint")(problem) for _ in range(2))
    assert violations(first.placement, problem.objective, problem.model, problem.topology) == []
    assert (first.placement.digest, first.scheduled) == (second.placement.digest, second.scheduled)
    assert found_s(problem) <= least(problem) * (1 + 1e-9)


@pytest.mark.parametrize("dispatch", sorted(set(DISPATCHES) - {"dedup"}))
def test_where_tokens_do_not_return_home_clusters_change_nothing(dispatch: Dispatch) -> None:
    problem = of_requests(random_requests(3), Objective(dispatch))
    plain = replace(problem, profile=replace(problem.profile, clusters=None))
    one, other = (optimizer("joint")(each) for each in (problem, plain))
    assert one.placement.digest == other.placement.digest
    assert not one.scheduled


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([1, 2]), st.integers(0, 2))
def test_what_an_exchange_costs_is_the_difference_that_it_makes(
    seed: int, nodes: int, more: int
) -> None:
    problem = of_requests(random_requests(seed, 6, experts=8), gpus=4, nodes=nodes)
    problem = replace(problem, slots=8 + 4 * more)
    kinds, plain = Kinds.of(problem.profile), terms.layers(problem)
    owned = cluster_homes(problem.profile, problem.linear)
    layers = terms.with_homes(problem, plain, kinds, owned)
    rules, layer = terms.rules(problem, layers), layers[0]
    state = settle(layer, rules, start(problem)[0].copy())
    rng = np.random.default_rng(seed)
    for _ in range(20):
        x, y = (int(slot) for slot in rng.integers(problem.slots, size=2))
        size, f = problem.slots // 4, int(state.slots[y])
        if x // size == y // size or state.held[y // size, state.slots[x]]:
            continue
        if state.held[x // size, f]:
            continue
        before = settle(layer, rules, state.slots.copy())
        cost = weigh(layer, rules, state, (x, y, f))
        accept(layer, rules, state, (x, y, f))
        after = settle(layer, rules, state.slots.copy())
        assert state.colocated == pytest.approx(after.colocated, abs=1e-12)
        if not rules.by_rule:
            difference = seconds_of(layer, after) - seconds_of(layer, before)
            assert cost == pytest.approx(difference, abs=1e-12)


def test_visitors_are_the_tokens_of_others() -> None:
    # Two requests of as many tokens: those of the first use 0 and 1, those of the second 2 and 3.
    trace = a_trace([[[0, 1]], [[0, 1]], [[2, 3]], [[2, 3]]], seq_lens=[2, 2])
    problem = of_requests(trace)
    kinds = Kinds.of(problem.profile)
    together = a_placement([[0, 1, 2, 3]])
    owned = cluster_homes(problem.profile, together)
    (layer,) = terms.with_homes(problem, terms.layers(problem), kinds, owned)
    assert layer.visitors.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert layer.visiting[0].tolist() == [[0] * 4, [0] * 4, [0, 0, 0, 1], [0, 0, 1, 0]]


def test_names_of_gpus_cost_neither_balance_nor_fanout() -> None:
    trace = random_requests(5, requests=12, experts=8)
    problem = of_requests(trace, gpus=4)
    rng = np.random.default_rng(5)
    before = problem.placement(np.array([rng.permutation(8) for _ in range(2)]))
    after = relabelled(problem, Kinds.of(problem.profile), before)
    one, other = score(problem, before, trace), score(problem, after, trace)
    assert one.balancedness == pytest.approx(other.balancedness)
    assert one.fanout_gpus == pytest.approx(other.fanout_gpus)
    own = (scheduled(problem.profile, each, trace) for each in (before, after))
    was, now = (
        score(problem, placement, trace, homes=homes).dispatch_s
        for placement, homes in zip((before, after), own, strict=True)
    )
    assert now <= was


def test_replicas_go_to_those_at_home_who_use_them() -> None:
    """Nothing but standing and leaving knows where a replica's tokens are at home."""
    trace = random_requests(2, requests=8, experts=8)
    problem = of_requests(trace, gpus=4, slots=12)
    kinds, plain = Kinds.of(problem.profile), terms.layers(problem)
    owned = cluster_homes(problem.profile, problem.linear)
    layer = terms.with_homes(problem, plain, kinds, owned)[0]
    _, use = kinds.owned(owned)
    assert layer.standing.max() == 0
    for expert in range(8):
        by_use = np.argsort(use[:, 0, expert], kind="stable")
        assert (np.diff(layer.standing[expert][by_use]) <= 1e-15).all()
        assert (np.diff(layer.leaving[expert][by_use]) <= 1e-15).all()


def test_a_running_plan_is_touched_up_with_its_names() -> None:
    trace = random_requests(7, requests=16, tokens=40, experts=16)
    problem = of_requests(trace, gpus=4)
    first = solve(problem, "joint")
    assert isinstance(first, Solution)
    drifted = random_requests(8, requests=16, tokens=40, experts=16)
    again = replace(of_requests(drifted, gpus=4), current=first.placement)
    found = solve(again, "joint")
    assert isinstance(found, Solution)
    running, stands = first.placement, found.placement
    was, now = (
        score(again, each, drifted, homes=scheduled(again.profile, each, drifted)).step_s
        for each in (running, stands)
    )
    assert now <= was


def test_a_plan_says_where_requests_are_at_home() -> None:
    trace = random_requests(1, requests=8)
    problem = of_requests(trace)
    solution = solve(problem, "joint")
    assert isinstance(solution, Solution)
    plan = make_plan(problem, solution, Provenance("joint"), trace, random_requests(2, 8))
    assert isinstance(plan, Plan)
    assert plan.homes is not None
    assert problem.profile.clusters is not None
    assert plan.homes.clusters == problem.profile.clusters.digest
    owned = np.zeros(2)
    for shares, tokens in zip(plan.homes.shares, plan.homes.tokens, strict=True):
        assert sum(share for _, share in shares) == pytest.approx(1)
        for gpu, share in shares:
            owned[gpu] += share * tokens
    assert owned == pytest.approx([24, 24], rel=1e-4)
    assert homes(trace.seq_lens, 2).tolist() == [0, 1] * 4  # which the plan is compared with
