"""Seconds that the experts of a layer take on their slowest GPU (roofline)."""

import numpy as np

from placer.arrays import FloatArray
from placer.placement import EMPTY, Placement
from placer.problem import Problem


def seconds(
    problem: Problem, placement: Placement, served: FloatArray, load: FloatArray
) -> FloatArray:
    """[layers] the larger of arithmetic and weight reading, of the GPU where it is largest.

    served: [layers, gpus] activations that each GPU computes in one step
    load:   [layers, experts] activations of each expert in one step

    Arithmetic bounds prefill; decode is bound by reading the weights of every expert that gets a
    token at all. An expert with a mean of n tokens a step is active with probability 1 - exp(-n).
    """
    model, gpu, objective = problem.model, problem.topology.gpu, problem.objective
    peak = gpu.flops_8bit if model.weight_bits <= 8 else gpu.flops_16bit
    arithmetic = served * model.expert_flops / (peak * objective.efficiency)

    table = placement.physical_to_logical
    share = load / np.maximum(placement.replicas, 1)
    tokens_of_slot = np.where(
        table == EMPTY, 0.0, np.take_along_axis(share, np.maximum(table, 0), axis=1)
    )
    active = 1 - np.exp(-tokens_of_slot)
    by_gpu = active.reshape(placement.layers, placement.gpus, -1).sum(axis=2)
    reading = by_gpu * model.expert_bytes / gpu.hbm_bytes_per_s
    slowest: FloatArray = np.maximum(arithmetic, reading).max(axis=1)
    return slowest
