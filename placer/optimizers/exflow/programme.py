"""ExFlow's integer programme, with pairs of experts in place of tokens.

The paper has variables for every token: whether it changes GPU at each layer. Tokens that go from
one expert to the same next one change together, so one variable for each such pair, weighted by its
count, has the same optimum; its size does not grow with the traffic.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.optimizers.exflow.chain import Chain, Counts, experts_of
from placer.solver import Programme


def crossing_programme(counts: Counts, parts: int) -> tuple[Programme, list[IntArray]]:
    """min sum of count * leaves, and for each layer the variables [experts, parts].

    ``leaves`` of a pair is 1 if the first is in a part and the second is not. An expert leaves at
    least those of the next layer that do not fit its part, and the other way round: whole variables
    imply this anyway, but it tightens the relaxation. Parts are alike: the first layer numbers them
    by their lowest expert.
    """
    programme = Programme()
    on = [programme.binary((experts, parts)) for experts in experts_of(counts)]
    for layer in on:
        for expert in layer:
            programme.hold(expert, 1.0, 1, 1)
        for part in layer.T:
            programme.hold(part, 1.0, len(layer) // parts, -(-len(layer) // parts))
    for expert in range(min(parts - 1, len(on[0]))):
        programme.hold(on[0][expert, expert + 1 :], 1.0, 0, 0)
    for count, (one, other) in zip(counts, pairwise(on), strict=True):
        leaves = programme.continuous(count.shape, 0.0, 1.0, cost=count)
        for variables in (*leaves, *leaves.T):
            programme.hold(variables, 1.0, low=len(variables) - -(-len(variables) // parts))
        for pair in np.ndindex(count.shape):
            for here, there in zip(one[pair[0]], other[pair[1]], strict=True):
                programme.hold([leaves[pair], here, there], [1.0, -1.0, 1.0], low=0.0)
    return programme, on


def values_of(counts: Counts, chain: Chain, parts: int) -> FloatArray:
    """``chain`` as the values of the programme's variables."""
    first = [int(np.argmax(chain[0] == part)) for part in range(parts)]
    missing = np.bincount(chain[0], minlength=parts) == 0
    number = np.argsort(np.argsort(np.where(missing, len(chain[0]), first), kind="stable"))
    on = [np.eye(parts)[number[split]].ravel() for split in chain]
    leaves = [(a[:, None] != b).ravel().astype(np.float64) for a, b in pairwise(chain)]
    return np.concatenate(on + leaves)


def chain_of(values: FloatArray, on: Sequence[IntArray]) -> Chain:
    """The chain that the programme's values stand for."""
    return [values[layer].argmax(axis=1) for layer in on]
