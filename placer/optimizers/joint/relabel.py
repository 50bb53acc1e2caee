"""GPUs relabelled along the layers, so that tokens stay."""

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.labels import assign
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


def _held(row: IntArray, experts: int, gpus: int) -> FloatArray:
    """[experts, gpus] 1 where a slot holds the expert."""
    held = np.zeros((experts, gpus))
    held[row, np.arange(len(row)) * gpus // len(row)] = 1.0
    return held
