"""Tiny worlds of tokens that keep together, and every clustering of tinier ones as the oracle."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.checks import violations
from placer.errors import RoutingError
from placer.objective import Objective
from placer.optimizers import optimizer
from placer.optimizers.cocluster import THETA, cocluster
from placer.placement import EMPTY
from placer.problem import Problem
from placer.tables import device_tables, local_activation_rate, token_identity
from placer.trace import Trace
from tests.builders import a_model, a_problem, a_trace, loads, random_trace

# Two kinds of tokens, as many of each, that share no expert.
KINDS = [[[0, 2], [1, 3]], [[3, 1], [2, 0]]]


def of_tokens(trace: Trace, **more: Any) -> Problem:
    return replace(a_problem(trace, **more), trace=trace)


def held(problem: Problem) -> list[list[frozenset[int]]]:
    """The experts of each layer's GPUs."""
    table = optimizer("cocluster")(problem).placement.physical_to_logical
    by_gpu = table.reshape(len(table), problem.topology.gpus, -1)
    return [[frozenset(gpu) - {EMPTY} for gpu in row] for row in by_gpu.tolist()]


def test_kinds_that_share_no_expert_get_a_gpu_each() -> None:
    problem = of_tokens(a_trace(KINDS * 5))
    first, second = held(problem)
    assert set(first) == {frozenset({0, 2}), frozenset({1, 3})}
    # The second layer's clusters stand where the first layer's tokens are.
    assert second == [frozenset({1, 3} if 0 in first[0] else {0, 2}), second[1]]


def test_their_tokens_find_every_expert_at_home() -> None:
    trace = a_trace(KINDS * 5)
    solution = optimizer("cocluster")(of_tokens(trace))
    tables = device_tables(trace, solution.placement)
    tokens = token_identity(trace)
    homes = tables.request_scores(tokens, np.ones(10, dtype=int)).argmax(axis=1)
    assert np.bincount(homes).tolist() == [5, 5]
    assert local_activation_rate(trace, solution.placement, homes) == 1.0
    # Of the 20 activations a layer linear leaves half away, and theta halves them again.
    assert solution.notes == (
        "objective 5 -> 0 (linear, then co-clustered; theta 0.5): tokens find 50.0% -> 100.0% of "
        "their experts on their own cluster's GPU",
    )


def test_heavy_experts_part_although_tokens_use_both() -> None:
    # Experts 0 and 2 have nine times the load of 1 and 3.
    trace = a_trace([[[0, 2]]] * 9 + [[[1, 3]]])
    assert all(len(gpu & {0, 2}) == 1 for gpu in held(of_tokens(trace))[0])


def test_a_profile_has_no_tokens() -> None:
    with pytest.raises(RoutingError, match=r"needs tokens and a profile has none: give traces$"):
        optimizer("cocluster")(a_problem(loads([[1, 2, 3, 4]])))


def test_redundant_slots_stay_empty_and_it_says_so() -> None:
    solution = optimizer("cocluster")(of_tokens(a_trace(KINDS), slots=8))
    assert (solution.placement.replicas == 1).all()
    assert solution.notes[1] == "4 redundant slots a layer stay empty: cocluster has no replicas"


def test_groups_that_may_not_be_split_stay_on_their_node() -> None:
    model, objective = a_model(2, 8, 2, groups=4), Objective(keep_groups=True)
    trace = random_trace(1, experts=8)
    problem = of_tokens(trace, gpus=4, nodes=2, model=model, objective=objective)
    placement = optimizer("cocluster")(problem).placement
    assert violations(placement, objective, model, problem.topology) == []


def plain_objective(
    trace: Trace, experts: Sequence[Sequence[int]], token: dict[int, int], gpus: int
) -> float:
    """The formula, one activation at a time."""
    homes = [token[kind] for kind in token_identity(trace).tolist()]
    uneven = sum(abs(homes.count(gpu) - trace.tokens / gpus) for gpu in range(gpus))
    remote = sum(
        experts[layer][expert] != home
        for home, layers in zip(homes, trace.expert_ids.tolist(), strict=True)
        for layer, row in enumerate(layers)
        for expert in row
    )
    return THETA * uneven + (1 - THETA) * remote / trace.layers


def every_objective(trace: Trace) -> Iterator[float]:
    """Of all ways to part tokens, and the experts of each layer, over two GPUs."""
    half = list(combinations(range(trace.experts), trace.experts // 2))
    rows = [[int(expert in chosen) for expert in range(trace.experts)] for chosen in half]
    kinds = sorted(set(token_identity(trace).tolist()))
    for experts in product(rows, repeat=trace.layers):
        for homes in product(range(2), repeat=len(kinds)):
            yield plain_objective(trace, experts, dict(zip(kinds, homes, strict=True)), 2)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), top_k=st.sampled_from([1, 2]))
def test_never_worse_than_its_start_nor_better_than_trying_everything(
    seed: int, top_k: int
) -> None:
    trace = random_trace(seed, tokens=6, layers=2, experts=4, top_k=top_k)
    start, found = cocluster(of_tokens(trace))
    assert min(every_objective(trace)) - 1e-9 <= found.objective <= start.objective


@given(seed=st.integers(0, 2**16))
def test_on_worlds_that_come_apart_it_finds_the_best(seed: int) -> None:
    # Each kind has its own half of each layer's experts, and half of the tokens.
    rng = np.random.default_rng(seed)
    halves = rng.permuted(np.tile(np.arange(6), (2, 1)), axis=1).reshape(2, 2, 3)
    kind = rng.permutation(np.arange(24) % 2)
    ids = np.array([[rng.permutation(halves[layer, k])[:2] for layer in range(2)] for k in kind])
    trace = Trace(ids, np.array([24]), 6, token_ids=kind)
    found = cocluster(of_tokens(trace))[1]
    assert found.objective == 0
    assert found.local == 1


@given(seed=st.integers(0, 2**16), gpus=st.sampled_from([1, 2, 4]))
def test_its_objective_is_the_formula(seed: int, gpus: int) -> None:
    trace = random_trace(seed, layers=3, experts=8)
    kinds = sorted(set(token_identity(trace).tolist()))
    for clusters in cocluster(of_tokens(trace, gpus=gpus)):
        homes = dict(zip(kinds, clusters.tokens.tolist(), strict=True))
        plain = plain_objective(trace, clusters.experts.tolist(), homes, gpus)
        assert clusters.objective == pytest.approx(plain)


@given(
    seed=st.integers(0, 2**16),
    nodes=st.sampled_from([1, 2]),
    per_node=st.integers(1, 3),
    experts=st.integers(6, 9),
    extra=st.integers(0, 1),
)
def test_every_placement_is_valid_and_the_same_again(
    seed: int, nodes: int, per_node: int, experts: int, extra: int
) -> None:
    gpus = nodes * per_node
    trace = random_trace(seed, experts=experts)
    slots = (-(-experts // gpus) + extra) * gpus  # experts need not divide by the GPUs
    problem = of_tokens(trace, slots=slots, gpus=gpus, nodes=nodes, seed=seed)
    first, second = (optimizer("cocluster")(problem) for _ in range(2))
    broken = violations(first.placement, problem.objective, problem.model, problem.topology)
    assert broken == []
    assert (first.placement.digest, first.notes) == (second.placement.digest, second.notes)
