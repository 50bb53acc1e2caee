"""Seconds of the experts in steps, whose tokens are a draw and not the mean."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from placer import cost
from placer.arrays import FloatArray, IntArray
from placer.cost import compute
from placer.cost.balance import rank_load
from placer.placement import EMPTY, Placement
from placer.problem import Problem
from placer.profile import Profile
from simulations.kernels import GRID

MAXIMA = 256  # layers of steps that are drawn, at least
MANY = 256  # tokens of an expert, in the mean, that are as good as their mean
FEW = 4  # tokens of a step, whose experts are drawn token by token
SIZES = 2 ** np.arange(GRID)  # of steps, in tokens, that the kernels of engines know


def grid(problem: Problem, placement: Placement) -> FloatArray:
    """[GRID] seconds of steps of SIZES."""
    return step_seconds(problem, placement, SIZES.tolist())


def step_seconds(problem: Problem, placement: Placement, tokens: Sequence[int]) -> FloatArray:
    """Of all MoE layers, to be expected of steps with so many tokens in all: placer's own score,
    but that it takes them for the mean of the traffic, and the slowest GPU of a drawn step takes
    longer. Few tokens are never spread as evenly as many."""
    shares, gpus = _shares(problem.profile), placement.gpus
    scored = [max(round(one / gpus), 1) for one in tokens]  # tokens of each GPU
    found = np.array(cost.step_seconds(problem, placement, scored))
    sizes = {*tokens, *(one * gpus for one in scored)}  # of two kinds that are mostly the same
    mean_s = {one: _mean_seconds(problem, placement, shares * one) for one in sizes}
    for at, one in enumerate(tokens):
        experts_s = mean_s[one]
        if one * problem.model.top_k <= MANY * placement.experts:
            experts_s = max(experts_s, drawn_seconds(problem, placement, one))
        found[at] += experts_s - mean_s[scored[at] * gpus]
    return found


def _mean_seconds(problem: Problem, placement: Placement, load: FloatArray) -> float:
    """Of the experts. load: [layers, experts] activations of a step"""
    slowest = compute.seconds(problem, placement, rank_load(load, placement), load)
    return float(slowest.sum())


def drawn_seconds(problem: Problem, placement: Placement, tokens: int) -> float:
    """Mean over steps whose activations are drawn one by one."""
    drawn = _drawn(problem.profile, tokens)
    by_rank = placement.physical_to_logical.reshape(placement.layers, placement.gpus, -1)
    table = np.moveaxis(by_rank, 2, 0)  # sums over the first axis are the fast ones
    layer = np.arange(placement.layers)[:, None]
    some, of = drawn[layer, table], placement.replicas[layer, table]  # of EMPTY: whatever
    some[table == EMPTY] = 0
    computed, read = some / of[..., None], (some > 0).astype(np.float64)
    shared = of > 1  # the chance that one of an expert's tokens comes to a replica:
    read[shared] = 1 - (1 - 1 / of[shared])[:, None] ** some[shared]
    slowest = np.maximum(
        computed.sum(axis=0) * compute.activation_seconds(problem),
        read.sum(axis=0) * compute.reading_seconds(problem),
    )
    return float(slowest.max(axis=1).sum(axis=0).mean())


@lru_cache(maxsize=256)  # most of the time that a table takes; placements share their traffic
def _drawn(profile: Profile, tokens: int) -> IntArray:
    """[layers, experts, draws] activations of steps of so many tokens."""
    shares, draws = _shares(profile), -(-MAXIMA // profile.layers)
    lots = np.random.default_rng(tokens)
    if tokens > FEW:
        activations = round(tokens * shares[0].sum())
        chances = shares / shares.sum(axis=1, keepdims=True)
        drawn = lots.multinomial(activations, chances, (draws, profile.layers))
    else:
        drawn = np.sum([_chosen(lots, shares, draws) for _ in range(tokens)], axis=0)
    return np.ascontiguousarray(np.moveaxis(drawn, 0, 2), dtype=np.int32)


def _chosen(lots: np.random.Generator, shares: FloatArray, draws: int) -> IntArray:
    """[draws, layers, experts] whether a token goes there: to different ones, as often as their
    shares say, which are laid end to end in any order; where a whole number lies after a random
    shift, it goes."""
    every = np.broadcast_to(np.arange(shares.shape[1]), (draws, *shares.shape))
    order = lots.permuted(every, axis=2)
    ends = np.take_along_axis(shares[None], order, axis=2).cumsum(axis=2)
    passed = np.floor(ends + lots.random((draws, len(shares), 1))).astype(np.int64)
    found = np.zeros_like(passed)
    np.put_along_axis(found, order, np.diff(passed, axis=2, prepend=0), axis=2)
    return found


def _shares(profile: Profile) -> FloatArray:
    """[layers, experts] of the tokens that use each expert."""
    return np.minimum(profile.load / profile.tokens, 1.0)
