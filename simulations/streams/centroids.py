"""ELDR's centroids, which its scheduler is given."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from placer.arrays import FloatArray, IntArray
from placer.optimizers.eldr import zones
from placer.placement import Placement
from placer.trace import Trace


def centroids(trace: Trace, clusters: int, seed: int) -> FloatArray:
    """[clusters, layers, experts] of balanced K-means on what experts requests used."""
    found, _ = zones(trace, clusters, seed)
    return found.centroids.reshape(clusters, trace.layers, trace.experts)


def on_ranks(found: FloatArray, placement: Placement) -> FloatArray:
    """The centroids in the order of the ranks that serve most of their activations."""
    held = (placement.copies > 0).astype(np.float64)
    rows, columns = linear_sum_assignment(-np.einsum("cle,leg->cg", found, held))
    order: IntArray = np.empty(len(found), dtype=np.int64)
    order[columns] = rows
    return found[order]
