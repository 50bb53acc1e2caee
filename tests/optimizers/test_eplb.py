"""DeepSeek's example as a golden test, and a plain reading of its description as the oracle."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.checks import violations
from placer.cost.balance import by_layer, rank_load
from placer.objective import Objective
from placer.optimizers import optimizer
from placer.packing import rebalance, separate
from placer.problem import Problem
from tests.builders import a_placement, a_problem, loads, worlds

# README of github.com/deepseek-ai/EPLB: 16 replicas, 4 groups, 2 nodes, 8 GPUs.
GOLDEN_LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
GOLDEN_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_deepseeks_example_gives_deepseeks_map() -> None:
    assert rebalance(np.array(GOLDEN_LOADS), 16, 4, 2, 8).tolist() == GOLDEN_MAP


def plain_pack(weights: Sequence[np.float32], packs: int) -> list[list[int]]:
    """Items of each pack: heaviest first into the lightest pack with room, lowest index first."""
    room = len(weights) // packs
    if room == 1:
        return [[item] for item in range(packs)]
    held: list[list[int]] = [[] for _ in range(packs)]
    total = [np.float32(0)] * packs
    for item in sorted(range(len(weights)), key=lambda i: -weights[i]):
        pack = min((p for p in range(packs) if len(held[p]) < room), key=lambda p: total[p])
        held[pack].append(item)
        total[pack] += weights[item]
    return held


def plain_eplb(
    row: npt.NDArray[np.float32], slots: int, groups: int, nodes: int, gpus: int
) -> list[int]:
    """One layer, step by step as DeepSeek describes it."""
    if groups % nodes:
        groups = nodes = 1
    size = len(row) // groups
    group_load = list(row.reshape(groups, size).sum(axis=1))
    result: list[int] = []
    for node_groups in plain_pack(group_load, nodes):
        experts = [group * size + i for group in node_groups for i in range(size)]
        count = dict.fromkeys(experts, 1)
        replicas = list(experts)
        while len(replicas) < slots // nodes:
            hottest = max(experts, key=lambda e: row[e] / np.float32(count[e]))
            count[hottest] += 1
            replicas.append(hottest)
        each = [row[e] / np.float32(count[e]) for e in replicas]
        for held in plain_pack(each, gpus // nodes):
            result += [replicas[item] for item in held]
    return result


@given(
    seed=st.integers(0, 2**16),
    shape=st.sampled_from(
        # experts, slots, groups, nodes, gpus
        [
            (12, 16, 4, 2, 8),
            (16, 24, 4, 2, 4),
            (12, 12, 1, 1, 4),
            (12, 12, 1, 1, 12),
            (8, 12, 2, 2, 2),
            (12, 16, 3, 2, 4),
            (8, 8, 1, 1, 1),
            (64, 72, 8, 4, 8),
        ]
    ),
    ties=st.booleans(),
)
def test_every_map_is_deepseeks(
    seed: int, shape: tuple[int, int, int, int, int], ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    experts, slots, groups, nodes, gpus = shape
    size = (3, experts)
    load = rng.integers(0, 4, size) * 1.0 if ties else rng.lognormal(0, 1, size) * 1000
    found = rebalance(load, slots, groups, nodes, gpus)
    rows = load.astype(np.float32)
    assert found.tolist() == [plain_eplb(row, slots, groups, nodes, gpus) for row in rows]


def plain_separate(
    row: npt.NDArray[np.int64], load: npt.NDArray[np.float64], gpus: int, nodes: int
) -> list[int]:
    """One layer, one duplicate after the other."""
    held, per_node = row.reshape(gpus, -1).copy(), gpus // nodes
    slots = range(held.shape[1])
    while again := [(g, s) for g in range(gpus) for s in slots if held[g, s] in held[g, :s]]:
        g, s = again[0]
        expert, first = held[g, s], g // per_node * per_node
        each = load / np.bincount(held.ravel(), minlength=len(load))
        weight = each[held].sum(axis=1)
        for scope in (range(first, first + per_node), range(gpus)):
            ways = [
                (max(weight[g] - gain, weight[h] + gain), h, t)
                for h in scope
                for t in slots
                if expert not in held[h] and held[h, t] not in held[g]
                for gain in [each[expert] - each[held[h, t]]]
            ]
            lacking = set(held[scope].ravel().tolist()) - set(held[g].tolist())
            if ways:
                _, h, t = min(ways)
                held[g, s], held[h, t] = held[h, t], expert
                break
            if lacking:
                held[g, s] = max(lacking, key=lambda e: (each[e], -e))
                break
    return held.ravel().tolist()


@given(
    seed=st.integers(0, 2**16),
    shape=st.sampled_from([(4, 8, 2, 2), (6, 12, 4, 2), (7, 18, 6, 3), (12, 16, 4, 1)]),
    ties=st.booleans(),
)
def test_duplicates_are_parted_one_after_the_other_in_every_layer(
    seed: int, shape: tuple[int, int, int, int], ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    experts, slots, gpus, nodes = shape
    load = rng.lognormal(0, 1, (3, experts))
    if ties:
        load = np.floor(load)
    hot = rng.integers(0, experts, (3, slots - experts)) // 2
    table = rng.permuted(np.hstack([np.tile(np.arange(experts), (3, 1)), hot]), axis=1)
    found = separate(table, load, gpus, nodes)
    plain = [plain_separate(*layer, gpus, nodes) for layer in zip(table, load, strict=True)]
    assert found.tolist() == plain


def test_separating_exchanges_the_second_replica_as_cheaply_as_possible() -> None:
    # GPU 0 holds expert 0 twice. Each replica carries 4; of GPU 1's experts 2 weighs 3, 3 weighs 1.
    load = np.array([[8.0, 0.0, 3.0, 1.0]])
    table = np.array([[0, 0, 1, 2, 3, 3]])
    fixed = separate(table, load, gpus=2, nodes=1)
    assert violations(a_placement(fixed.tolist()), Objective()) == []
    balance = by_layer(rank_load(load, a_placement(fixed.tolist())))
    assert balance[0] == pytest.approx(6 / 7.0, abs=0.2)


def test_a_replica_for_which_no_gpu_is_left_goes_to_another_expert() -> None:
    # Three replicas of expert 0 on two GPUs.
    fixed = separate(np.array([[0, 0, 0, 1, 2, 3]]), np.array([[9.0, 1, 1, 1]]), gpus=2, nodes=1)
    assert violations(a_placement(fixed.tolist()), Objective()) == []


def test_deepseeks_duplicates_stay_where_they_are_allowed() -> None:
    profile = loads([[100, 1, 1, 1]])
    allowed = a_problem(profile, slots=8, objective=Objective(allow_duplicates=True))
    assert optimizer("eplb")(allowed).placement.replicas[0, 0] > 2
    assert optimizer("eplb")(a_problem(profile, slots=8)).placement.replicas[0].tolist() == [2] * 4


@given(worlds())
def test_eplb_always_passes_the_checks(problem: Problem) -> None:
    placement = optimizer("eplb")(problem).placement
    assert violations(placement, problem.objective, problem.model, problem.topology) == []
