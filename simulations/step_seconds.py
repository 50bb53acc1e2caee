"""Seconds of the experts in steps, whose tokens are a draw and not the mean."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from placer import cost
from placer.arrays import FloatArray, IntArray
from placer.cost.balance import rank_load
from placer.cost.compute import activation_seconds, by_gpu, reading_seconds
from placer.placement import EMPTY, Placement
from placer.problem import Problem
from placer.profile import Profile

MAXIMA = 256  # layers of steps that are drawn, at least
MANY = 256  # tokens of an expert, in the mean, that are as good as their mean


def step_seconds(
    problem: Problem, placement: Placement, tokens_per_gpu: Sequence[int]
) -> FloatArray:
    """Of all MoE layers, to be expected of steps with so many tokens a GPU each: placer's own
    score, which takes a step's tokens for the mean of the traffic, and how much longer the slowest
    GPU of a drawn step takes. Few tokens are never spread as evenly as many."""
    shares = _shares(problem.profile)
    found = np.array(cost.step_seconds(problem, placement, tokens_per_gpu))
    for at, tokens in enumerate(placement.gpus * each for each in tokens_per_gpu):
        if tokens * problem.model.top_k > MANY * placement.experts:
            continue
        load = shares * tokens
        mean = by_gpu(problem, placement, rank_load(load, placement), load)
        longer_s = drawn_seconds(problem, placement, tokens) - np.maximum(*mean).max(1).sum()
        found[at] += max(float(longer_s), 0.0)
    return found


def drawn_seconds(problem: Problem, placement: Placement, tokens: int) -> float:
    """Mean over steps whose activations are drawn one by one."""
    drawn = _drawn(problem.profile, tokens)
    table, replicas = placement.physical_to_logical, placement.replicas
    layer = np.arange(placement.layers)[:, None]
    slots = np.maximum(table, 0)
    some = drawn[:, layer, slots]  # [draws, layers, slots]
    each, of = some / replicas[layer, slots], replicas[layer, slots]
    used = (some > 0).astype(np.float64)
    at, slot = np.nonzero(of > 1)  # the chance that one of an expert's tokens comes to a replica:
    used[:, at, slot] = 1 - (1 - 1 / of[at, slot]) ** some[:, at, slot]
    by_rank = (*some.shape[:2], placement.gpus, -1)
    computed, read = (
        np.where(table == EMPTY, 0.0, one).reshape(by_rank).sum(3) for one in (each, used)
    )
    slowest = np.maximum(computed * activation_seconds(problem), read * reading_seconds(problem))
    return float(slowest.max(axis=2).sum(axis=1).mean())


@lru_cache(maxsize=256)  # most of the time that a table takes; placements share their traffic
def _drawn(profile: Profile, tokens: int) -> IntArray:
    """[draws, layers, experts] activations of steps of so many tokens."""
    shares, size = _shares(profile), (-(-MAXIMA // profile.layers), profile.layers)
    activations = round(tokens * shares[0].sum())
    chances = shares / shares.sum(axis=1, keepdims=True)
    drawn = np.random.default_rng(tokens).multinomial(activations, chances, size)
    return drawn.astype(np.int32)


def _shares(profile: Profile) -> FloatArray:
    """[layers, experts] of the tokens that use each expert."""
    return np.minimum(profile.load / profile.tokens, 1.0)
