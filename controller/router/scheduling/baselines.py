"""What the other schedulers look up: as in ours, values from 0 to 1 of a token and a rank."""

import numpy as np

from placer.arrays import FloatArray
from placer.placement import Placement
from placer.tables import TokenTable


def votes(table: TokenTable, placement: Placement) -> FloatArray:
    """[rows, gpus] share of the layers at which a GPU has most of a token's activations: the hard
    cluster ids of Sem-MoE (arXiv 2503.04398), for ``round_mask``."""
    held = (placement.copies > 0).astype(np.float64)
    found = np.zeros((len(table.times), placement.gpus))
    rows = np.arange(len(found))
    for counts, on in zip(table.counts, held, strict=True):
        found[rows, (counts @ on).argmax(axis=1)] += 1
    return found / placement.layers


def similarity(table: TokenTable, centroids: FloatArray) -> FloatArray:
    """[rows, centroids] what a token adds to the cosine of its request's signature and a centroid,
    but for the signature's length, for ``eldr`` (arXiv 2607.00466).

    centroids: [centroids, layers, experts] of balanced K-means on requests' counts of experts
    """
    length = np.sqrt((centroids**2).sum(axis=(1, 2)))
    unit = centroids / length[:, None, None]
    found = np.zeros((len(table.times), len(centroids)))
    for layer, counts in enumerate(table.counts):
        found += counts @ unit[:, layer].T
    found /= table.times[:, None]
    return found / max(found.max(), 1e-300)
