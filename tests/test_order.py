"""No figure depends on the order in which a router leaves a token's experts."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.arrays import IntArray
from placer.cost import score
from placer.cost.serving import LayerMap, serve
from placer.files.plans import plan_text
from placer.objective import DISPATCHES, Dispatch, Objective
from placer.optimizers import OPTIMIZERS
from placer.plan import Plan, Provenance, Solution
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.profile import of_trace
from placer.tables import device_tables, token_table
from placer.trace import Trace
from tests.builders import a_placement, a_problem, random_trace

EXPERTS, GPUS = 6, 3


def shuffled(ids: IntArray, seed: int) -> tuple[IntArray, IntArray]:
    """Every token's columns in an order of its own, in every layer, and that order."""
    order = np.random.default_rng(seed).permuted(
        np.broadcast_to(np.arange(ids.shape[2]), ids.shape), axis=2
    )
    return np.take_along_axis(ids, order, axis=2), order


def two_orders(seed: int, top_k: int, experts: int = EXPERTS, gated: bool = True) -> list[Trace]:
    """The same routing twice, its columns in other orders."""
    like = random_trace(seed, tokens=30, layers=3, experts=experts, top_k=top_k)
    gates = np.random.default_rng(seed).random(like.expert_ids.shape) if gated else None
    found = []
    for each in (seed, seed + 1):
        ids, order = shuffled(like.expert_ids, each)
        weights = None if gates is None else np.take_along_axis(gates, order, axis=2)
        found.append(Trace(ids, like.seq_lens, experts, gates=weights))
    return found


def planned(problem: Problem, name: str) -> str:
    """The plan file, with its figures; or why there is none."""
    solution = solve(problem, name)
    assert isinstance(solution, Solution)
    plan = make_plan(problem, solution, Provenance(name, {}, (), "today"), problem.trace)
    return plan_text(plan) if isinstance(plan, Plan) else plan.reason


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(2, 4))
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"exhaustive"}))
def test_a_plan_is_the_same_byte_for_byte(
    name: str, dispatch: Dispatch, seed: int, top_k: int
) -> None:
    one, other = (
        planned(a_problem(trace, EXPERTS + GPUS, GPUS, objective=Objective(dispatch)), name)
        for trace in two_orders(seed, top_k)
    )
    assert one == other


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_the_best_of_all_plans_is_the_same(dispatch: Dispatch) -> None:
    one, other = (
        planned(a_problem(trace, objective=Objective(dispatch)), "exhaustive")
        for trace in two_orders(0, top_k=2, experts=4)
    )
    assert one == other


@given(st.integers(0, 1000), st.booleans(), st.sampled_from(DISPATCHES))
def test_a_score_is_the_same(seed: int, gated: bool, dispatch: Dispatch) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.permutation([*range(EXPERTS), *rng.permutation(EXPERTS)[:3]]) for _ in range(3)]
    placement = a_placement(np.array(rows).tolist(), EXPERTS, GPUS)
    one, other = (
        score(a_problem(trace, 9, GPUS, objective=Objective(dispatch)), placement, trace)
        for trace in two_orders(seed, 3, gated=gated)
    )
    assert asdict(one) == asdict(other)


@given(st.integers(0, 1000))
def test_a_profile_is_the_same(seed: int) -> None:
    one, other = map(of_trace, two_orders(seed, 3))
    for name in ("load", "transitions", "coactivation"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert one.spread is not None
    assert other.spread is not None
    assert one.spread.products.tobytes() == other.spread.products.tobytes()


@given(st.integers(0, 1000))
def test_token_tables_are_the_same(seed: int) -> None:
    # An expert has one to three replicas: thirds of a token add up to another sum in another order.
    placement = a_placement([[0, 1, 2, 3, 4, 5, 0, 1, 0]] * 3, EXPERTS, GPUS)
    traces = two_orders(seed, 4)
    one, other = (device_tables(trace, placement) for trace in traces)
    for name in ("near", "device", "confidence", "next_device", "next_confidence"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    counts = [token_table(trace).counts.tobytes() for trace in traces]
    assert counts[0] == counts[1]


@given(st.integers(0, 1000), st.booleans())
def test_every_expert_is_served_by_the_same_replica(seed: int, everywhere: bool) -> None:
    rng = np.random.default_rng(seed)
    where = LayerMap.of(a_placement([[0, 1, 2, 3, 4, 5, 1, 2, 0]], EXPERTS, GPUS), 0)
    ids = random_trace(seed, layers=1, experts=EXPERTS, top_k=4).expert_ids
    other, order = shuffled(ids, seed)
    hashed, here = rng.integers(99, size=(2, len(ids)))
    at = None if everywhere else here % GPUS
    one, two = (serve(each[:, 0], where, hashed, at, np.zeros(GPUS, int)) for each in (ids, other))
    assert np.take_along_axis(one, order[:, 0], axis=1).tolist() == two.tolist()
