"""Where the search of ``joint`` begins."""

from dataclasses import replace

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.packing import hierarchical, rebalance, separate
from placer.placement import EMPTY
from placer.problem import Problem
from placer.repair import repair


def start(problem: Problem) -> IntArray:
    """[layers, slots] the current plan with its empty slots filled, or else a balanced one."""
    if problem.current is not None:
        return repair(problem, fill=True).physical_to_logical.astype(np.int64)
    load = problem.profile.load
    gpus, nodes = problem.topology.gpus, problem.topology.nodes
    if problem.objective.survive_node:
        rows = [on_two_nodes(row, problem.slots, gpus, nodes) for row in load]
        return np.array(rows, dtype=np.int64)
    kept = nodes if hierarchical(problem.model.groups, nodes) else 1
    groups = problem.model.groups
    if not problem.objective.keep_groups:
        groups = kept = 1
    table = rebalance(load, problem.slots, groups, kept, gpus)
    return separate(table, load, gpus, kept).astype(np.int64)


def group(problem: Problem) -> Problem | None:
    """The problem of one of the smallest groups of GPUs that have room for all experts, if slots
    are enough for two: no token leaves its group then. Exchange by exchange a search does not come
    there, since a group must be whole before it saves anything."""
    topology, objective = problem.topology, problem.objective
    if objective.dispatch == "allgather" or objective.keep_groups:
        return None
    for groups in range(problem.slots // problem.model.experts, 1, -1):
        whole = groups % topology.nodes == 0 or topology.nodes % groups == 0
        if whole and topology.gpus % groups == 0:
            nodes = max(topology.nodes // groups, 1)
            return replace(
                problem,
                topology=topology.resized(topology.gpus // groups, nodes),
                slots=problem.slots // groups,
                objective=replace(objective, survive_node=False),  # other groups are elsewhere
            )
    return None


def replicas_wanted(problem: Problem) -> IntArray:
    """[layers, experts] as many of each expert as its load asks for."""
    load = problem.profile.load
    found = np.zeros(load.shape, dtype=np.int64)
    rows = rebalance(load, problem.slots, 1, 1, problem.topology.gpus)
    np.add.at(found, (np.arange(len(load))[:, None], rows), 1)
    return found


def replicated(problem: Problem, table: IntArray) -> IntArray:
    """[layers, slots] ``table`` with as many replicas of each expert as its load asks for: they
    take slots of experts that have too many, of the heaviest GPUs, and go to the lightest.

    Exchanges that make GPUs alike do not come there: an expert with most of a GPU's load stays
    whole among idle ones, and its GPU is the slowest as soon as traffic changes."""
    load, gpus, slots = problem.profile.load, problem.topology.gpus, problem.slots
    table, gpu_of = table.copy(), np.arange(slots) * gpus // slots
    for row, use, wants in zip(table, load, replicas_wanted(problem), strict=True):
        if not use.any():
            continue
        has = np.bincount(row, minlength=len(use))
        each = use / wants
        by_gpu = np.bincount(gpu_of, each[row], gpus)
        free = []
        for expert in np.repeat(np.arange(len(use)), np.maximum(has - wants, 0)):
            slot = max(np.flatnonzero(row == expert), key=lambda slot: by_gpu[gpu_of[slot]])
            by_gpu[gpu_of[slot]] -= each[expert]
            row[slot] = EMPTY
            free.append(slot)
        lacking = np.repeat(np.arange(len(use)), np.maximum(wants - has, 0))
        for expert in lacking[np.argsort(-each[lacking], kind="stable")]:
            is_there, where = np.zeros(gpus, dtype=np.bool_), gpu_of[free]
            is_there[gpu_of[row == expert]] = True
            slot = free.pop(np.lexsort((by_gpu[where], is_there[where]))[0])
            by_gpu[gpu_of[slot]] += each[expert]
            row[slot] = expert
    return separate(table, load, gpus, 1)


def on_two_nodes(load: FloatArray, slots: int, gpus: int, nodes: int) -> list[int]:
    """[slots] every expert on two nodes, heavier ones first onto the lighter of the GPUs.

    load: [experts]. By load, experts take turns at the nodes, each at one node and the next; what
    room is left goes to the heaviest replica that a GPU lacks.
    """
    size, per_node = slots // gpus, gpus // nodes
    order = np.argsort(-load, kind="stable").tolist()
    held: list[list[int]] = [[] for _ in range(gpus)]
    each = load / 2
    for turn, expert in enumerate(order):
        for node in (turn % nodes, (turn + 1) % nodes):
            members = range(node * per_node, (node + 1) * per_node)
            free = [gpu for gpu in members if len(held[gpu]) < size]
            if free:
                held[min(free, key=lambda gpu: each[held[gpu]].sum())].append(expert)
    count = np.full(len(load), 2)
    for gpu in range(gpus):
        while len(held[gpu]) < size:
            lacking = [expert for expert in order if expert not in held[gpu]]
            chosen = max(lacking, key=lambda expert: load[expert] / count[expert])
            count[chosen] += 1
            held[gpu].append(chosen)
    return [expert for gpu in held for expert in gpu]
