"""Seconds of the experts in one step, whose tokens are a draw and not the mean."""

from dataclasses import replace

import numpy as np

from placer.arrays import FloatArray
from placer.cost import score
from placer.cost.balance import rank_load
from placer.cost.compute import activation_seconds, by_gpu, reading_seconds
from placer.placement import EMPTY, Placement
from placer.problem import Problem

MAXIMA = 256  # layers of steps that are drawn, at least
MANY = 256  # tokens of an expert, in the mean, that are as good as their mean


def step_seconds(problem: Problem, placement: Placement, tokens_per_gpu: int) -> float:
    """Of all MoE layers, to be expected: placer's own score, which takes a step's tokens for the
    mean of the traffic, and how much longer the slowest GPU of a drawn step takes. Few tokens are
    never spread as evenly as many."""
    objective = replace(problem.objective, tokens_per_gpu=tokens_per_gpu)
    problem = replace(problem, objective=objective)
    tokens = tokens_per_gpu * placement.gpus
    mean_s = score(problem, placement, only_timed=True).step_s
    if tokens * problem.model.top_k > MANY * placement.experts:
        return mean_s
    shares = np.minimum(problem.profile.load / problem.profile.tokens, 1.0)
    mean = by_gpu(problem, placement, rank_load(shares * tokens, placement), shares * tokens)
    longer_s = drawn_seconds(problem, placement, shares, tokens) - np.maximum(*mean).max(1).sum()
    return mean_s + max(float(longer_s), 0.0)


def drawn_seconds(problem: Problem, placement: Placement, shares: FloatArray, tokens: int) -> float:
    """Mean over steps whose activations are drawn one by one.

    shares: [layers, experts]
    """
    draws = -(-MAXIMA // placement.layers)
    activations = round(tokens * shares[0].sum())
    chances = shares / shares.sum(axis=1, keepdims=True)
    size = draws, placement.layers
    drawn = np.random.default_rng(tokens).multinomial(activations, chances, size)
    table, replicas = placement.physical_to_logical, placement.replicas
    layer = np.arange(placement.layers)[:, None]
    slots = np.maximum(table, 0)
    some = drawn[:, layer, slots]  # [draws, layers, slots]
    each, of = some / replicas[layer, slots], replicas[layer, slots]
    used = 1 - (1 - 1 / of) ** some  # the chance that one of an expert's tokens comes to a replica
    by_rank = (*some.shape[:2], placement.gpus, -1)
    computed, read = (
        np.where(table == EMPTY, 0.0, one).reshape(by_rank).sum(3) for one in (each, used)
    )
    slowest = np.maximum(computed * activation_seconds(problem), read * reading_seconds(problem))
    return float(slowest.max(axis=2).sum(axis=1).mean())
