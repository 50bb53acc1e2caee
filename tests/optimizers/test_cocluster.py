"""Tiny worlds of requests that keep together, and every clustering of tinier ones as the oracle."""

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
from placer.optimizers.cocluster import THETA, cocluster, votes
from placer.placement import EMPTY
from placer.problem import Problem
from placer.tables import local_activation_rate
from placer.trace import Trace
from tests.builders import a_model, a_problem, a_trace, loads, random_trace

# Requests of one token of two kinds, as many of each, that share no expert.
KINDS = [[[0, 2], [1, 3]], [[3, 1], [2, 0]]]


def each_alone(trace: Trace) -> Trace:
    """Every token a request."""
    return replace(trace, seq_lens=np.ones(trace.tokens, dtype=np.int64))


def of_requests(trace: Trace, **more: Any) -> Problem:
    return replace(a_problem(trace, **more), trace=trace)


def held(problem: Problem) -> list[list[frozenset[int]]]:
    """The experts of each layer's GPUs."""
    table = optimizer("cocluster")(problem).placement.physical_to_logical
    by_gpu = table.reshape(len(table), problem.topology.gpus, -1)
    return [[frozenset(gpu) - {EMPTY} for gpu in row] for row in by_gpu.tolist()]


def test_kinds_that_share_no_expert_get_a_gpu_each() -> None:
    problem = of_requests(each_alone(a_trace(KINDS * 5)))
    first, second = held(problem)
    assert set(first) == {frozenset({0, 2}), frozenset({1, 3})}
    # The second layer's clusters stand where the first layer's requests are.
    assert second == [frozenset({1, 3} if 0 in first[0] else {0, 2}), second[1]]


def test_they_find_every_expert_at_home() -> None:
    trace = each_alone(a_trace(KINDS * 5))
    solution, found = optimizer("cocluster")(of_requests(trace)), cocluster(of_requests(trace))[1]
    assert np.bincount(found.requests).tolist() == [5, 5]
    assert local_activation_rate(trace, solution.placement, found.requests) == 1.0
    # Of the 20 activations a layer linear leaves half away, and theta halves them again.
    assert solution.notes == (
        "objective 5 -> 0 (linear, then co-clustered; theta 0.5): requests find 50.0% -> 100.0% of "
        "their experts on their own cluster's GPU",
    )


def test_a_request_keeps_its_tokens_together() -> None:
    # Both kinds in each request: all of a request is on one GPU, and half of it finds its experts.
    trace = replace(a_trace(KINDS * 4), seq_lens=np.array([2, 2, 2, 2]))
    found = cocluster(of_requests(trace))[1]
    assert np.bincount(found.requests).tolist() == [2, 2]
    assert found.local == 0.5


def test_tokens_vote_for_the_gpu_of_most_requests_that_they_came_in() -> None:
    # Token 7 came twice on GPU 1 and once on GPU 0, token 9 once on GPU 0.
    trace = a_trace([[[0]], [[0]], [[1]], [[1]]], seq_lens=[2, 2], token_ids=np.array([7, 9, 7, 7]))
    table = votes(trace, np.array([0, 1]), 2)
    assert table.device.tolist() == [1, 0, 0]
    assert table.confidence.tolist() == pytest.approx([2 / 3, 1, 0])
    # Nobody knows token 5: it does not vote.
    found = table.of_requests(np.array([7, 9, 7, 5]), np.array([3, 1]), 2)
    assert found.tolist() == [[1, 2], [0, 0]]


def test_heavy_experts_part_although_tokens_use_both() -> None:
    # Experts 0 and 2 have nine times the load of 1 and 3.
    trace = each_alone(a_trace([[[0, 2]]] * 9 + [[[1, 3]]]))
    assert all(len(gpu & {0, 2}) == 1 for gpu in held(of_requests(trace))[0])


def test_a_profile_has_no_tokens() -> None:
    with pytest.raises(RoutingError, match=r"needs requests and a profile has none: give traces$"):
        optimizer("cocluster")(a_problem(loads([[1, 2, 3, 4]])))


def test_redundant_slots_stay_empty_and_it_says_so() -> None:
    solution = optimizer("cocluster")(of_requests(a_trace(KINDS), slots=8))
    assert (solution.placement.replicas == 1).all()
    assert solution.notes[1] == "4 redundant slots a layer stay empty: cocluster has no replicas"


def test_groups_that_may_not_be_split_stay_on_their_node() -> None:
    model, objective = a_model(2, 8, 2, groups=4), Objective(keep_groups=True)
    trace = random_trace(1, experts=8)
    problem = of_requests(trace, gpus=4, nodes=2, model=model, objective=objective)
    placement = optimizer("cocluster")(problem).placement
    assert violations(placement, objective, model, problem.topology) == []


def plain_objective(
    trace: Trace, experts: Sequence[Sequence[int]], requests: Sequence[int], gpus: int
) -> float:
    """The formula, one activation at a time."""
    homes = np.repeat(requests, trace.seq_lens).tolist()
    uneven = sum(abs(homes.count(gpu) - trace.tokens / gpus) for gpu in range(gpus))
    remote = sum(
        experts[layer][expert] != home
        for home, layers in zip(homes, trace.expert_ids.tolist(), strict=True)
        for layer, row in enumerate(layers)
        for expert in row
    )
    return THETA * uneven + (1 - THETA) * remote / trace.layers


def every_objective(trace: Trace) -> Iterator[float]:
    """Of all ways to part requests, and the experts of each layer, over two GPUs."""
    half = list(combinations(range(trace.experts), trace.experts // 2))
    rows = [[int(expert in chosen) for expert in range(trace.experts)] for chosen in half]
    for experts in product(rows, repeat=trace.layers):
        for homes in product(range(2), repeat=trace.sequences):
            yield plain_objective(trace, experts, homes, 2)


def in_requests(seed: int, tokens: int, **more: int) -> Trace:
    """Random routing of requests of two tokens."""
    trace = random_trace(seed, tokens=tokens, **more)
    return replace(trace, seq_lens=np.full(tokens // 2, 2))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), top_k=st.sampled_from([1, 2]))
def test_never_worse_than_its_start_nor_better_than_trying_everything(
    seed: int, top_k: int
) -> None:
    trace = in_requests(seed, 8, layers=2, experts=4, top_k=top_k)
    start, found = cocluster(of_requests(trace))
    assert min(every_objective(trace)) - 1e-9 <= found.objective <= start.objective


@given(seed=st.integers(0, 2**16))
def test_on_worlds_that_come_apart_it_finds_the_best(seed: int) -> None:
    # Each kind has its own half of each layer's experts, and half of the requests.
    rng = np.random.default_rng(seed)
    halves = rng.permuted(np.tile(np.arange(6), (2, 1)), axis=1).reshape(2, 2, 3)
    kind = rng.permutation(np.arange(24) % 2)
    ids = np.array([[rng.permutation(halves[layer, k])[:2] for layer in range(2)] for k in kind])
    found = cocluster(of_requests(Trace(ids, np.ones(24, dtype=np.int64), 6)))[1]
    assert found.objective == 0
    assert found.local == 1


@given(seed=st.integers(0, 2**16), gpus=st.sampled_from([1, 2, 4]))
def test_its_objective_is_the_formula(seed: int, gpus: int) -> None:
    trace = in_requests(seed, 40, layers=3, experts=8)
    for clusters in cocluster(of_requests(trace, gpus=gpus)):
        experts, requests = clusters.experts.tolist(), clusters.requests.tolist()
        plain = plain_objective(trace, experts, requests, gpus)
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
    problem = of_requests(trace, slots=slots, gpus=gpus, nodes=nodes, seed=seed)
    first, second = (optimizer("cocluster")(problem) for _ in range(2))
    broken = violations(first.placement, problem.objective, problem.model, problem.topology)
    assert broken == []
    assert (first.placement.digest, first.notes) == (second.placement.digest, second.notes)
