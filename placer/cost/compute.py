"""Seconds that the experts of a layer take on their slowest GPU (roofline).

Arithmetic bounds prefill; decode is bound by reading the weights of every expert that gets a token
at all. An expert with a mean of n tokens a step gets one with probability 1 - exp(-n).
"""

import numpy as np

from placer.arrays import FloatArray
from placer.cost.balance import slot_load
from placer.placement import Placement
from placer.problem import Problem


def activation_seconds(problem: Problem) -> float:
    """One token in one expert, by arithmetic."""
    model, gpu = problem.model, problem.topology.gpu
    peak = gpu.flops_8bit if model.weight_bits <= 8 else gpu.flops_16bit
    return model.expert_flops / (peak * problem.objective.efficiency)


def reading_seconds(problem: Problem) -> float:
    """Reading one expert's weights from a GPU's own memory."""
    return problem.model.expert_bytes / problem.topology.gpu.hbm_bytes_per_s


def seconds(
    problem: Problem, placement: Placement, served: FloatArray, load: FloatArray
) -> FloatArray:
    """[layers] the larger of arithmetic and weight reading, of the GPU where it is largest.

    served: [layers, gpus] activations that each GPU computes in one step
    load:   [layers, experts] activations of each expert in one step
    """
    slowest: FloatArray = np.maximum(*by_gpu(problem, placement, served, load)).max(axis=1)
    return slowest


def by_gpu(
    problem: Problem, placement: Placement, served: FloatArray, load: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """[layers, gpus] seconds of arithmetic and of reading weights, which go on at the same time."""
    active = -np.expm1(-slot_load(load, placement))
    read = active.reshape(placement.layers, placement.gpus, -1).sum(axis=2)
    return served * activation_seconds(problem), read * reading_seconds(problem)


def replica_seconds(problem: Problem, most: int) -> tuple[FloatArray, FloatArray]:
    """What experts cost their GPUs in a step of the problem's profile.

    Returns [layers, experts], the seconds of arithmetic for all of an expert's tokens; and
    [layers, experts, most + 1], those of reading its weights on the GPU of each of r replicas.
    """
    tokens = step_load(problem)
    each = tokens[:, :, None] / np.maximum(np.arange(most + 1), 1)
    return tokens * activation_seconds(problem), -np.expm1(-each) * reading_seconds(problem)


def step_load(problem: Problem) -> FloatArray:
    """[layers, experts] activations of a step of the problem's profile."""
    profile = problem.profile
    tokens = problem.objective.tokens_per_gpu * problem.topology.gpus
    return profile.load / profile.tokens * tokens


def slopes(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """[layers, experts] by how much an expert's seconds grow with the chance that a token uses it:
    by arithmetic, and by reading (of a single replica)."""
    tokens = problem.objective.tokens_per_gpu * problem.topology.gpus
    load = step_load(problem)
    arithmetic = np.full_like(load, tokens * activation_seconds(problem))
    return arithmetic, tokens * np.exp(-load) * reading_seconds(problem)
