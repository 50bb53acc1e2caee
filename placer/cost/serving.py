"""Which GPU serves each of a token's experts: the dispatch rule for replicas.

Of an expert's replicas a token takes, in this order of preference: one on the GPU where the
token is, one in that node, one on a GPU that the token already visits, and the one that the
token's hash names. Experts with the fewest replicas choose first, so that the freer ones can
follow them; of those with as many, the one with the lowest id. Under ``allgather`` every rank has
every token and only the hash counts, as in vLLM.
"""

from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, IntArray
from placer.placement import Placement

_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth's multiplicative hash)


@dataclass(frozen=True, slots=True)
class LayerMap:
    """Where the replicas of one layer's experts are.

    gpus:  [experts, most replicas] GPUs in ascending order, padded with -1
    count: [experts] distinct GPUs that hold the expert
    """

    gpus: IntArray
    count: IntArray

    @classmethod
    def of(cls, placement: Placement, layer: int) -> "LayerMap":
        held = placement.copies[layer] > 0
        count = held.sum(axis=1)
        expert, gpu = np.nonzero(held)
        gpus = np.full((len(held), max(int(count.max()), 1)), -1)
        gpus[expert, np.arange(len(expert)) - np.repeat(np.cumsum(count) - count, count)] = gpu
        return cls(gpus, count)


def token_hash(tokens: IntArray) -> IntArray:
    """[tokens] a fixed pseudo-random number below 2**31 of each token's index."""
    mixed = tokens.astype(np.uint64) * _HASH
    return (mixed >> np.uint64(33)).astype(np.int64)


def serve(
    ids: IntArray, where: LayerMap, hashed: IntArray, here: IntArray | None, node_of: IntArray
) -> IntArray:
    """[tokens, top_k] the GPU that serves each activation of one layer.

    ids:     [tokens, top_k] experts
    hashed:  [tokens] from ``token_hash``
    here:    [tokens] the GPU where each token is; None if every GPU has it (``allgather``)
    node_of: [gpus]
    """
    served = where.gpus[ids, 0]
    replicated = np.nonzero((where.count[ids] > 1).any(axis=1))[0]
    if len(replicated):
        served[replicated] = _choose(
            ids[replicated],
            where,
            hashed[replicated],
            None if here is None else here[replicated],
            node_of,
        )
    return served


def _choose(
    ids: IntArray, where: LayerMap, hashed: IntArray, here: IntArray | None, node_of: IntArray
) -> IntArray:
    rows = np.arange(len(ids))
    served = np.empty(ids.shape, dtype=where.gpus.dtype)
    visited: BoolArray = np.zeros((len(ids), len(node_of)), dtype=bool)
    order = np.argsort(where.count[ids] * len(where.count) + ids, axis=1)
    most = where.gpus.shape[1]
    for column in order.T:
        expert = ids[rows, column]
        candidates = where.gpus[expert]
        count = where.count[expert][:, None]
        # 0 for the replica that the hash names, then 1, 2, ... for those after it.
        rank = (np.arange(most) - hashed[:, None]) % count
        if here is not None:
            rank = rank + most * (
                4 * (candidates != here[:, None])
                + 2 * (node_of[candidates] != node_of[here][:, None])
                + ~visited[rows[:, None], candidates]
            )
        best = np.where(candidates < 0, np.iinfo(np.int64).max, rank).argmin(axis=1)
        gpu = candidates[rows, best]
        served[rows, column] = gpu
        visited[rows, gpu] = True
    return served
