"""How evenly a placement spreads load over the GPUs.

Definitions as in docs/metrics.md: W[l, g] sums load / replicas over the slots of GPU g, and
balancedness of a layer is mean W over max W: 1 is even, 1/GPUs is everything on one.
"""

import numpy as np

from placer.arrays import FloatArray
from placer.placement import EMPTY, Placement


def rank_load(load: FloatArray, placement: Placement) -> FloatArray:
    """[layers, gpus] tokens of each GPU when replicas share their expert's load evenly.

    load: [layers, experts] tokens
    """
    by_slot = slot_load(load, placement).reshape(placement.layers, placement.gpus, -1)
    per_gpu: FloatArray = by_slot.sum(axis=2)
    return per_gpu


def slot_load(load: FloatArray, placement: Placement) -> FloatArray:
    """[layers, slots] tokens of each slot when replicas share evenly; 0 of an empty one.

    load: [layers, experts] tokens
    """
    table = placement.physical_to_logical
    share = load / np.maximum(placement.replicas, 1)
    found: FloatArray = np.take_along_axis(share, np.maximum(table, 0), axis=1)
    found[table == EMPTY] = 0.0
    return found


def by_layer(rank_load: FloatArray) -> FloatArray:
    """[layers] balancedness; a layer without load counts as even."""
    peak = rank_load.max(axis=1)
    return np.divide(rank_load.mean(axis=1), peak, out=np.ones_like(peak), where=peak > 0)


def aggregate(rank_load: FloatArray) -> float:
    """Sum of the layers' means over the sum of their maxima: the figure that vLLM logs."""
    peak = float(rank_load.max(axis=1).sum())
    return float(rank_load.mean(axis=1).sum()) / peak if peak else 1.0
