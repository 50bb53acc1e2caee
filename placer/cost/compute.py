"""Seconds that the experts of a layer take on their slowest GPU (roofline).

Arithmetic bounds prefill; decode is bound by reading the weights of every expert that gets a token
at all. An expert with a mean of n tokens a step gets one with probability 1 - exp(-n).
"""

import numpy as np

from placer.arrays import FloatArray
from placer.placement import EMPTY, Placement
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
    arithmetic = served * activation_seconds(problem)
    table = placement.physical_to_logical
    share = load / np.maximum(placement.replicas, 1)
    tokens_of_slot = np.where(
        table == EMPTY, 0.0, np.take_along_axis(share, np.maximum(table, 0), axis=1)
    )
    active = 1 - np.exp(-tokens_of_slot)
    by_gpu = active.reshape(placement.layers, placement.gpus, -1).sum(axis=2)
    slowest: FloatArray = np.maximum(arithmetic, by_gpu * reading_seconds(problem)).max(axis=1)
    return slowest


def replica_seconds(problem: Problem, most: int) -> tuple[FloatArray, FloatArray]:
    """What experts cost their GPUs in a step of the problem's profile.

    Returns [layers, experts, most + 1], the seconds of each of r replicas, by arithmetic or by
    reading, whichever binds the layer; and [layers, experts], by how much they grow with the chance
    that a token uses the expert.
    """
    tokens = problem.objective.tokens_per_gpu * problem.topology.gpus
    use = problem.profile.load / problem.profile.tokens
    replicas = np.maximum(np.arange(most + 1), 1)
    each = (use * tokens)[:, :, None] / replicas
    arithmetic = each * activation_seconds(problem)
    reading = -np.expm1(-each) * reading_seconds(problem)
    by_reading = reading[:, :, 1].sum(axis=1) > arithmetic[:, :, 1].sum(axis=1)
    slope = np.where(
        by_reading[:, None],
        tokens * np.exp(-use * tokens) * reading_seconds(problem),
        tokens * activation_seconds(problem),
    )
    return np.where(by_reading[:, None, None], reading, arithmetic), slope
