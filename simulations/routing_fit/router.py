"""Routing that is drawn from a few named numbers.

A token's experts of a layer are the top_k of

    bias[layer, expert]
    + variety * (sqrt(shared) * cluster[c, layer, expert]
                 + sqrt(1 - shared) * request[r, layer, expert])
    + together * sum over j (size[j] * factor[token, layer, j] * direction[layer, j, expert])
    + Gumbel noise

where all that has a place in brackets is standard normal, but for the sizes, whose squares fall
geometrically and add up to one, and for the bias: as routers are trained to even loads whatever
tokens prefer, it is what makes the loads log-normal with the deviation ``skew``. A token's factors
stay from one layer to the next as in an autoregression of order one. With Gumbel noise the top_k
are a draw without replacement in proportion to the exponentials of the rest, which is how they are
drawn: of exponential variates, each over its expert's weight, the smallest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import atanh, ceil, exp

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.model import ModelShape
from placer.trace import Trace
from simulations.routing import PARTS, Affinity, Floats, Routing, limited, of_trace

TOKENS_AT_A_TIME = 16_384
LENGTHS, POPULARITY, CLUSTERS, REQUESTS, TOKENS, NOISE, CHOICE = range(7)  # lots of their own
SHARED_TOKENS = 12_288  # that the loads of endless traffic are counted of
APART = 1e6  # a drift with which there is one cluster at a time
BALANCED = 1024  # tokens, about, that the bias is found on
ROUNDS = 10  # until it is
FARTHEST = 80.0  # that log odds are below the largest
NEGLIGIBLE = 1e-3  # of the squares of factors' sizes


@dataclass(frozen=True, slots=True)
class Router:
    """Deviations are of log odds.

    skew:     of the logarithms of loads, in each layer
    variety:  of what a request adds to an expert's odds
    shared:   the part of that variance which requests of one cluster have in common
    clusters: of requests, each as large
    drift:    how far these come one after another: 0 mixed all the time, large one at a time
    together: of what a token adds: experts of similar directions are used together
    factors:  that a token effectively has, 1 or more: the fewer, the larger the groups of experts
    stays:    correlation of a token's factors from a layer to the next
    length:   tokens of a request in the mean; spread: the deviation of their logarithms
    """

    skew: float = 0.0
    variety: float = 0.0
    shared: float = 0.0
    clusters: int = 1
    drift: float = 0.0
    together: float = 0.0
    factors: float = 1.0
    stays: float = 0.0
    length: float = 256.0
    spread: float = 0.0

    def lengths(self, requests: int, seed: int) -> IntArray:
        """[requests] tokens, log-normal, 1 or more."""
        middle = np.log(self.length) - self.spread**2 / 2
        drawn = np.random.default_rng([seed, LENGTHS]).lognormal(middle, self.spread, requests)
        return np.maximum(drawn.round(), 1).astype(np.int64)

    def mix(self, when: FloatArray) -> FloatArray:
        """[moments, clusters] shares of the requests, at moments from 0 to 1."""
        place = (np.arange(self.clusters) + 0.5) / self.clusters
        near = np.cos(np.pi * (when[:, None] - place))
        weights = np.exp(self.drift * (near - near.max(axis=1, keepdims=True)))
        found: FloatArray = weights / weights.sum(axis=1, keepdims=True)
        return found

    @property
    def sizes(self) -> FloatArray:
        """[factors] so that the squared sum of their squares over the sum of their fourth powers is
        ``factors``."""
        if self.factors <= 1:
            return np.ones(1)
        ratio = exp(-2 * atanh(1 / self.factors))
        squares = ratio ** np.arange(ceil(np.log(NEGLIGIBLE) / np.log(ratio)) + 1)
        found: FloatArray = np.sqrt(squares / squares.sum())
        return found

    def draw(
        self, layers: int, experts: int, top_k: int, lens: IntArray, seed: int | Sequence[int]
    ) -> Trace:
        """Requests of these lengths, one after another. The same seed gives the same trace, and
        other numbers of the same seed change it as little as may be."""
        noise = _lots(seed, NOISE)
        found = np.empty((int(lens.sum()), layers, top_k), np.int64)
        for layer, part, odds in self._odds(layers, experts, top_k, lens, seed):
            race = noise.standard_exponential(odds.shape, np.float32)
            race *= np.exp(np.minimum(-odds, FARTHEST))
            found[part, layer] = np.argpartition(race, top_k - 1, axis=1)[:, :top_k]
        return Trace(found, np.asarray(lens), experts)

    def _odds(
        self, layers: int, experts: int, top_k: int, lens: IntArray, seed: int | Sequence[int]
    ) -> Iterator[tuple[int, slice, Floats]]:
        """Of each layer, tokens by tokens: [tokens, experts] log odds below the largest."""

        def normal(of: int, layer: int, *shape: int) -> Floats:
            return _lots(seed, of, layer).standard_normal(shape, np.float32)

        count, total, sizes = len(lens), int(lens.sum()), self.sizes.astype(np.float32)
        passed = self.mix((np.arange(count) + 0.5) / count).cumsum(axis=1)
        chance = _lots(seed, CHOICE).random(count)
        cluster = (chance[:, None] > passed[:, :-1]).sum(axis=1)
        row = np.repeat(np.arange(count), lens)
        own, common = np.sqrt(1 - self.shared), np.sqrt(self.shared)
        stays, fresh = np.float32(self.stays), np.float32(np.sqrt(1 - self.stays**2))
        factor = normal(TOKENS, 0, len(sizes), total)
        for layer in range(layers):
            of_cluster = normal(CLUSTERS, layer, self.clusters, experts)[cluster]
            of_request = own * normal(REQUESTS, layer, count, experts) + common * of_cluster
            of_request = (self.variety * of_request).astype(np.float32)
            direction = normal(POPULARITY, layer + layers, len(sizes), experts)
            direction *= np.float32(self.together) * sizes[:, None]
            if layer:
                factor = stays * factor + fresh * normal(TOKENS, layer, len(sizes), total)
            popular = np.exp(self.skew * normal(POPULARITY, layer, experts).astype(np.float64))
            some = slice(None, None, max(total // BALANCED, 1))
            odds = of_request[row[some]] + factor[:, some].T @ direction
            of_request += balancing(odds, limited(popular, top_k))
            for first in range(0, total, TOKENS_AT_A_TIME):
                part = slice(first, first + TOKENS_AT_A_TIME)
                odds = of_request[row[part]] + factor[:, part].T @ direction
                odds -= odds.max(axis=1, keepdims=True)
                yield layer, part, odds

    def routing(
        self, model: ModelShape, turn_s: float, seed: int | Sequence[int], together: bool = False
    ) -> Routing:
        """Of endless traffic. turn_s: in which clusters come one after another, again and again; 0:
        as many of each all the time; together: with which experts tokens use together"""
        apart = replace(self, drift=APART)  # each cluster's loads, which any mix is made of
        lens = np.ones(SHARED_TOKENS, np.int64)
        dims = model.layers, model.experts, model.top_k
        mix = np.full((1, self.clusters), 1 / self.clusters)
        if turn_s:
            mix = self.mix((np.arange(PARTS) + 0.5) / PARTS)
        affinity = None
        if together:
            each, affinity = apart._expected(*dims, lens, seed, mix)
        else:
            each = of_trace(apart.draw(*dims, lens, seed), self.clusters, 0.0).shares
        every_s = turn_s / PARTS if turn_s else 0.0
        return Routing(np.einsum("mc,cle->mle", mix, each), every_s, affinity)

    def _expected(
        self, layers: int, experts: int, top_k: int, lens: IntArray, seed: int | Sequence[int],
        mix: FloatArray,
    ) -> tuple[FloatArray, Affinity]:  # fmt: skip
        """[clusters, layers, experts] shares, and what tokens use together, of clusters that come
        one after another: as the tokens' odds have it, without the lots of what is then drawn."""
        parts = np.array_split(np.arange(int(lens.sum())), self.clusters)
        shares = np.empty((self.clusters, layers, experts))
        coactivation = np.empty((*shares.shape, experts), np.float32)
        transitions = np.empty((self.clusters, layers - 1, experts, experts), np.float32)
        before = used = np.empty((int(lens.sum()), experts), np.float32)
        for layer, part, odds in self._odds(layers, experts, top_k, lens, seed):
            if part.start == 0:
                before, used = used, np.empty_like(used)
            used[part] = chances(odds, top_k)
            if part.stop < len(used):
                continue
            for at, tokens in enumerate(parts):
                here = used[tokens]
                shares[at, layer] = here.mean(axis=0)
                coactivation[at, layer] = _beside(here, top_k)
                if layer:
                    pairs = before[tokens].T @ here
                    transitions[at, layer - 1] = pairs / (len(tokens) * top_k**2)
        return shares, Affinity(coactivation, transitions, mix)


def _lots(seed: int | Sequence[int], of: int, layer: int = 0) -> np.random.Generator:
    return np.random.default_rng([*np.atleast_1d(seed), of, layer])


def chances(odds: Floats, top_k: int) -> Floats:
    """[tokens, experts] that a token uses an expert of these log odds, top_k in all: in a race of
    exponentials, 1 - exp(-t w), where t is such that they add up to that."""
    odds = np.maximum(odds, -FARTHEST)
    weights = np.exp(odds)
    time = np.exp(-np.partition(odds, -top_k, axis=1)[:, [-top_k]])  # is it the last one's turn?
    for _ in range(ROUNDS):
        unused = np.exp(-time * weights)
        over = odds.shape[1] - top_k - unused.sum(axis=1, keepdims=True)
        slope = np.maximum((time * weights * unused).sum(axis=1, keepdims=True), 1e-9)
        time *= np.exp(-np.clip(over / slope, -2, 2))  # a step of Newton's
    found = 1 - np.exp(-time * weights)
    told: Floats = np.minimum(found * (top_k / found.sum(axis=1, keepdims=True)), 1)
    return told


def _beside(used: Floats, top_k: int) -> Floats:
    """[experts, experts] share of the tokens that use both, of the chances that each uses one: as
    if these were independent, but for a token's using top_k - 1 beside each."""
    pairs = (used.T @ used / len(used)).astype(np.float64)
    np.fill_diagonal(pairs, 0.0)
    wanted = np.maximum(used.mean(axis=0, dtype=np.float64) * (top_k - 1), 1e-12)
    for _ in range(ROUNDS):
        scale = np.sqrt(wanted / np.maximum(pairs.sum(axis=1), 1e-12))
        pairs *= scale[:, None] * scale
    return pairs


def balancing(odds: Floats, shares: FloatArray) -> Floats:
    """[experts] what makes each expert be used by its share of the tokens, whose log odds are
    [tokens, experts]. A token uses one of weight w with the chance 1 - exp(-t w), where t is such
    that it uses as many as the shares add up to."""
    shares, top_k = shares.astype(np.float32), np.float32(shares.sum())
    bias = np.log(shares) - np.log(shares).mean()
    weights = np.exp(np.maximum(odds - odds.max(axis=1, keepdims=True), -FARTHEST))
    time = np.ones((len(odds), 1), np.float32)
    for _ in range(ROUNDS):
        rate = weights * np.exp(bias) * time
        unused = np.exp(-rate)
        over = len(shares) - top_k - unused.sum(axis=1, keepdims=True)
        rate *= unused
        slope = np.maximum(rate.sum(axis=1, keepdims=True), 1e-9)
        time *= np.exp(-np.clip(over / slope, -2, 2))  # a step of Newton's
        bias += np.log(shares / np.maximum(1 - unused.mean(axis=0), 1e-6))
    return bias
