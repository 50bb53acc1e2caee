"""What of a trace tells a router's numbers.

Every moment is a product of what was counted of different tokens (of every other sequence and of
those between them; of two tokens of a request; of different requests), so that sampling noise adds
nothing in the mean, and where there is nothing it is none.
"""

from typing import NamedTuple

import numpy as np

from placer.arrays import BoolArray, FloatArray
from placer.clusters import loads_by_request
from placer.trace import Trace

PARTS = 3  # drift is between the first and the last of so many


class Moments(NamedTuple):
    """Means over layers.

    skew:     variance of loads over the square of their mean
    variety:  how much more two tokens of a request have in common than two of different ones
    shared:   how much requests that are alike in one layer are alike in others
    grouped:  how much requests that are both like a third one are like each other
    drift:    squared difference between the first part's loads and the last's
    together: squared covariance of experts of a layer
    factors:  concentration of that on few directions: about one over how many there are
    stays:    squared covariance of experts of layers that are half of all layers apart
    """

    skew: float
    variety: float
    shared: float
    grouped: float
    drift: float
    together: float
    factors: float
    stays: float


def moments(trace: Trace) -> Moments:
    """Of 12 sequences or more. What is squared is told over the squared loads."""
    chosen = np.arange(trace.sequences) % 2 == 0
    one, two = _Half(trace.select(chosen)), _Half(trace.select(~chosen))
    alike = (one.load * two.load).sum(axis=1)
    within = np.einsum("lef,lef->l", one.within, two.within)
    product = one.within @ two.within
    fourth = np.einsum("lef,lfe->l", product, product)
    apart = trace.layers - len(one.across)
    across = np.einsum("lef,lef->l", one.across, two.across)
    across /= np.sqrt(alike[apart:] * alike[: len(across)])
    ends = _ends(trace, chosen) * _ends(trace, ~chosen)
    return Moments(
        float((alike / (trace.top_k**2 / trace.experts) - 1).mean()),
        *_of_requests(trace, alike),
        drift=float((ends.sum(axis=1) / alike).mean()),
        together=float((within / alike).mean()),
        factors=float(fourth.mean() / within.mean() ** 2),
        stays=float(across.mean()) if trace.layers > 1 else 0.0,
    )


class _Half:
    """load: [layers, experts] shares of the tokens; within: [layers, experts, experts] covariances,
    without a diagonal; across: those of a layer and the one half of all layers after it"""

    def __init__(self, trace: Trace) -> None:
        self.load = trace.load / trace.tokens
        layers, experts = self.load.shape
        apart = max(layers // 2, 1)
        self.within = np.zeros((layers, experts, experts))
        self.across = np.zeros((layers - apart, experts, experts))
        for layer in range(apart):
            before = None
            for at in range(layer, layers, apart):
                used = np.zeros((trace.tokens, experts), np.float32)
                np.put_along_axis(used, trace.expert_ids[:, at].astype(np.intp), 1.0, axis=1)
                used -= self.load[at].astype(np.float32)
                self.within[at] = used.T @ used / trace.tokens
                np.fill_diagonal(self.within[at], 0.0)
                if before is not None:
                    self.across[at - apart] = before.T @ used / trace.tokens
                before = used


def _ends(trace: Trace, chosen: BoolArray) -> FloatArray:
    """[layers, experts] the first part's shares less the last's, of the chosen sequences."""
    part = np.arange(trace.sequences) * PARTS // trace.sequences
    first, last = (trace.select(chosen & (part == which)) for which in (0, PARTS - 1))
    found: FloatArray = first.load / first.tokens - last.load / last.tokens
    return found


def _of_requests(trace: Trace, alike: FloatArray) -> tuple[float, float, float]:
    """Variety, shared and grouped."""
    lens, loads = trace.seq_lens.astype(np.float64), loads_by_request(trace)
    count, total, sums = len(lens), lens.sum(), loads.sum(axis=0)
    squares = (loads**2).sum(axis=2)
    same = (squares - lens[:, None] * trace.top_k) / np.maximum(lens - 1, 1)[:, None]
    others = ((sums**2).sum(axis=1) - squares.sum(axis=0)) / (total**2 - (lens**2).sum())
    variety = (same.sum(axis=0) / total / others - 1).mean()
    loads /= lens[:, None, None]
    loads -= sums / total
    found = np.zeros((2, count, count))  # of every other layer: how alike two requests are
    for layer in range(trace.layers):
        one = loads[:, layer]
        found[layer % 2] += one @ one.T / alike[layer]
    for matrix in found:
        np.fill_diagonal(matrix, 0.0)
    halves = np.array([(trace.layers + 1) // 2, max(trace.layers // 2, 1)])
    shared = (found[0] * found[1]).sum() / halves.prod() / (count * (count - 1))
    mean = found.sum(axis=0) / trace.layers
    triples = count * (count - 1) * (count - 2)
    return float(variety), float(shared), float((mean @ mean * mean).sum() / triples)
