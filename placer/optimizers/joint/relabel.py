"""GPUs relabelled along the layers, so that tokens stay."""

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.labels import assign
from placer.problem import Problem

PASSES = 6


def follow(problem: Problem, table: IntArray) -> IntArray:
    """``table`` [layers, slots] with each layer's GPUs relabelled so that most tokens stay.

    Layer after layer, the best labels given the layers beside it, back and forth while it helps;
    GPUs of a node stay together.
    """
    transitions = problem.profile.transitions
    assert transitions is not None  # only asked for where they are known
    gpus, nodes = problem.topology.gpus, problem.topology.nodes
    contents = table.reshape(len(table), gpus, -1).copy()
    layers = range(len(table))
    for turn in range(PASSES):
        changed = False
        for at in layers if turn % 2 == 0 else reversed(layers):
            held = _held(contents[at], problem.model.experts)
            stays = np.zeros((gpus, gpus))  # [label, content]
            if at > 0:
                before = _held(contents[at - 1], problem.model.experts)
                before /= np.maximum(before.sum(axis=1, keepdims=True), 1)
                stays += before.T @ transitions[at - 1] @ held
            # On the first way the layers after have no labels that mean anything yet.
            if turn > 0 and at + 1 < len(table):
                after = _held(contents[at + 1], problem.model.experts)
                stays += (held.T @ transitions[at] @ after).T
            labels = assign(stays[None], nodes)[0]
            changed |= stays[np.arange(gpus), labels].sum() > stays.trace() + 1e-9
            contents[at] = contents[at][labels]
        if not changed:
            break
    return contents.reshape(table.shape)


def _held(contents: IntArray, experts: int) -> FloatArray:
    """[experts, gpus] 1 where a GPU holds the expert. contents: [gpus, slots]"""
    held = np.zeros((experts, len(contents)))
    held[contents, np.arange(len(contents))[:, None]] = 1.0
    return held
