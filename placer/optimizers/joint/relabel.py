"""Which GPU is which: relabelling costs neither balance nor fan-out, but decides hops."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from placer.arrays import FloatArray, IntArray
from placer.problem import Problem


def follow(problem: Problem, table: IntArray) -> IntArray:
    """``table`` [layers, slots] with each layer's GPUs relabelled so that most tokens stay.

    Layer after layer, the best assignment to the layer before it; GPUs of a node stay together.
    """
    transitions = problem.profile.transitions
    assert transitions is not None  # only asked for where they are known
    gpus, nodes = problem.topology.gpus, problem.topology.nodes
    table = table.copy()
    for layer in range(1, len(table)):
        before, after = (
            _held(row, problem.model.experts, gpus) for row in table[layer - 1 : layer + 1]
        )
        before = before / np.maximum(before.sum(axis=1, keepdims=True), 1)
        stays = before.T @ transitions[layer - 1] @ after  # [gpu before, gpu after]
        held = table[layer].reshape(gpus, -1)
        table[layer] = held[assign(stays, nodes)].ravel()
    return table


def assign(value: FloatArray, nodes: int) -> IntArray:
    """[gpus] which of the columns' GPUs each of the rows' becomes, so that value adds up to most.

    value: [gpus, gpus]; whole nodes change places, and GPUs inside them.
    """
    size = len(value) // nodes
    blocks = value.reshape(nodes, size, nodes, size).transpose(0, 2, 1, 3)
    inside = np.empty((nodes, nodes, size), dtype=np.intp)
    total = np.empty((nodes, nodes))
    for row, column in np.ndindex(nodes, nodes):
        _, inside[row, column] = linear_sum_assignment(blocks[row, column], maximize=True)
        total[row, column] = blocks[row, column][np.arange(size), inside[row, column]].sum()
    _, node = linear_sum_assignment(total, maximize=True)
    chosen = node[:, None] * size + inside[np.arange(nodes), node]
    return chosen.ravel()


def _held(row: IntArray, experts: int, gpus: int) -> FloatArray:
    """[experts, gpus] 1 where a slot holds the expert."""
    held = np.zeros((experts, gpus))
    held[row, np.arange(len(row)) * gpus // len(row)] = 1.0
    return held
