"""Which experts tokens use as time goes on: drawn, or as a recorded trace has it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from placer import profile
from placer.arrays import FloatArray
from placer.model import ModelShape
from placer.profile import Profile
from placer.trace import Trace

Floats = npt.NDArray[np.floating[Any]]

PARTS = 12  # of a turn through all domains, in each of which the mix stays as it is
TOKENS = 1e6  # of a profile that stands for endless traffic: sampling noise is none


@dataclass(frozen=True, slots=True, eq=False)
class Affinity:
    """Which experts a token uses together, in parts that the traffic is mixed of.

    coactivation: [parts, layers, experts, experts] and transitions: [parts, layers - 1, experts,
            experts], as of a profile of one token
    mix:    [moments, parts] each part's share of the tokens
    """

    coactivation: Floats
    transitions: Floats
    mix: FloatArray

    def counts(self, moment: int, tokens: float) -> tuple[FloatArray, FloatArray]:
        """Transitions and co-activations of so many tokens, whole ones."""
        mix = self.mix[moment] * tokens
        transitions, coactivation = (
            np.floor(np.tensordot(mix, part, 1)) for part in (self.transitions, self.coactivation)
        )
        return transitions, coactivation


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """shares: [moments, layers, experts] of the tokens that use each expert; every_s: from one
    moment to the next, after the last comes the first; 0: there is one alone; affinity: None where
    a token's experts are independent, or do not matter"""

    shares: FloatArray
    every_s: float = 0.0
    affinity: Affinity | None = None

    def at(self, now_s: float) -> int:
        """Which moment."""
        return int(now_s / self.every_s) % len(self.shares) if self.every_s else 0

    def profile(self, moment: int, top_k: int) -> Profile:
        found = Profile(np.floor(self.shares[moment] * TOKENS), top_k, TOKENS, 0, sampled=True)
        if self.affinity is None:
            return found
        transitions, coactivation = self.affinity.counts(moment, TOKENS)
        return replace(found, transitions=transitions, coactivation=coactivation)


def drawn(
    model: ModelShape,
    skew: float,
    own: float,
    domains: int,
    turn_s: float,
    seed: int | Sequence[int],
) -> Routing:
    """Loads whose logarithms are normal.

    skew: their standard deviation; own: the part of its variance that domains do not share
    domains: whose turn it is one after another, ``turn_s`` for all of them; 0: one of them alone
    """
    rng = np.random.default_rng(seed)
    shape = model.layers, model.experts
    shared = rng.normal(size=shape)
    logs = np.sqrt(1 - own) * shared + np.sqrt(own) * rng.normal(size=(domains, *shape))
    weights = np.exp(skew * logs)
    if not turn_s or domains == 1:
        return Routing(limited(weights[:1], model.top_k))
    turns = np.arange(PARTS)[:, None] / PARTS - np.arange(domains)[None] / domains
    mix = np.exp(2 * np.cos(2 * np.pi * turns))
    mix /= mix.sum(axis=1, keepdims=True)
    each = limited(weights, model.top_k)
    return Routing(np.einsum("md,dle->mle", mix, each), turn_s / PARTS)


def of_trace(trace: Trace, moments: int, every_s: float, together: bool = False) -> Routing:
    """A recorded one's, in as many parts of equal length, one after another. together: with which
    experts tokens use together"""
    parts = np.array_split(np.arange(trace.tokens), moments)
    found = np.zeros((moments, trace.layers, trace.experts))
    pairs: list[tuple[Floats, Floats]] = []
    for moment, tokens in enumerate(parts):
        for layer in range(trace.layers):
            ids = trace.expert_ids[tokens, layer].ravel()
            ids = ids[(ids >= 0) & (ids < trace.experts)]
            found[moment, layer] = np.bincount(ids, minlength=trace.experts) / len(tokens)
        if together:
            pairs.append(_pairs(trace.expert_ids[tokens], trace.experts))
    affinity = None
    if together:
        transitions, coactivation = (np.array(part) for part in zip(*pairs, strict=True))
        affinity = Affinity(coactivation, transitions, np.eye(moments))
    return Routing(found, every_s if moments > 1 else 0.0, affinity)


def _pairs(ids: npt.NDArray[Any], experts: int) -> tuple[Floats, Floats]:
    """Transitions and co-activations a token. ids: [tokens, layers, top_k]"""
    one = profile.of_trace(Trace(ids, np.ones(len(ids), np.int64), experts))
    assert one.transitions is not None  # of every trace
    assert one.coactivation is not None
    transitions, coactivation = (
        (part / one.tokens).astype(np.float32) for part in (one.transitions, one.coactivation)
    )
    return transitions, coactivation


def limited(weights: FloatArray, top_k: int) -> FloatArray:
    """Shares of the tokens in proportion to weights, top_k in a layer, and of each expert no more
    than all: what is over goes to the others."""
    shares = weights / weights.sum(axis=-1, keepdims=True) * top_k
    for _ in range(weights.shape[-1]):
        over = np.maximum(shares - 1, 0).sum(axis=-1, keepdims=True)
        if over.max() < 1e-12:
            break
        shares = np.minimum(shares, 1)
        free = np.where(shares < 1, shares, 0)
        total = free.sum(axis=-1, keepdims=True)
        shares = shares + np.where(total > 0, free / np.where(total > 0, total, 1) * over, 0)
    return np.minimum(shares, 1)
