"""ELDR's centroids (arXiv 2607.00466): balanced K-means on what experts requests used."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from placer.arrays import FloatArray, IntArray
from placer.placement import Placement
from placer.trace import Trace

ROUNDS = 20


def signatures(trace: Trace) -> FloatArray:
    """[sequences, layers, experts] share of a sequence's tokens that use each expert."""
    sequence = np.repeat(np.arange(trace.sequences), trace.seq_lens)
    found = np.empty((trace.sequences, trace.layers, trace.experts))
    for layer in range(trace.layers):
        cell = sequence[:, None] * trace.experts + trace.expert_ids[:, layer]
        counts = np.bincount(cell.ravel(), minlength=trace.sequences * trace.experts)
        found[:, layer] = counts.reshape(trace.sequences, trace.experts)
    return found / trace.seq_lens[:, None, None]


def centroids(signature: FloatArray, clusters: int, seed: int) -> FloatArray:
    """[clusters, layers, experts] means of clusters that have as many requests."""
    flat = signature.reshape(len(signature), -1)
    places = np.arange(len(flat)) % clusters
    found = flat[np.random.default_rng(seed).permutation(len(flat))[:clusters]]
    chosen = np.full(len(flat), -1)
    for _ in range(ROUNDS):
        apart = (flat**2).sum(axis=1)[:, None] - 2 * flat @ found.T + (found**2).sum(axis=1)
        rows, columns = linear_sum_assignment(apart[:, places])
        before, chosen = chosen, places[columns[np.argsort(rows)]]
        found = np.stack([flat[chosen == one].mean(axis=0) for one in range(clusters)])
        if (before == chosen).all():
            break
    return found.reshape(clusters, *signature.shape[1:])


def on_ranks(found: FloatArray, placement: Placement) -> FloatArray:
    """The centroids in the order of the ranks that serve most of their activations."""
    held = (placement.copies > 0).astype(np.float64)
    local = np.einsum("cle,leg->cg", found, held)
    rows, columns = linear_sum_assignment(-local)
    order: IntArray = np.empty(len(found), dtype=np.int64)
    order[columns] = rows
    return found[order]
