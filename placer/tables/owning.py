"""What a GPU saves by owning a token."""

import numpy as np

from placer.arrays import FloatArray
from placer.placement import Placement
from placer.tables.counts import TokenTable

SURE = 1 - 1e-12  # of which there is a logarithm


def visits(table: TokenTable, placement: Placement) -> FloatArray:
    """[rows, gpus] chance that a token has an expert on a GPU, mean over layers: what is saved by
    its being owned there, since it is sent once to every other GPU that has any of them. As if
    its experts were drawn one by one."""
    held = placement.copies > 0
    found = np.zeros((len(table.times), placement.gpus))
    for layer, counts in enumerate(table.counts):
        absent = 1 - counts / table.times[:, None]
        for gpu in range(placement.gpus):
            found[:, gpu] += 1 - absent[:, held[layer, :, gpu]].prod(axis=1)
    return found / len(table.counts)


def local(table: TokenTable, placement: Placement) -> FloatArray:
    """[rows, gpus] share of a token's activations that a GPU can serve, mean over layers."""
    held = (placement.copies > 0).astype(np.float64)
    found = sum(counts @ on for counts, on in zip(table.counts, held, strict=True))
    whole = table.times[:, None] * (table.top_k * placement.layers)
    share: FloatArray = np.asarray(found) / whole
    return share


def away(table: TokenTable, placement: Placement) -> FloatArray:
    """[rows, gpus] other GPUs that a token is sent to if one owns it, mean over layers: those of
    experts that its own does not hold, of replicas each as often. As if experts were drawn one by
    one."""
    held = placement.copies > 0
    share = placement.copies / placement.copies.sum(axis=2, keepdims=True)
    found = np.zeros((len(table.times), placement.gpus))
    for layer, counts in enumerate(table.counts):
        chance = counts / table.times[:, None]
        for gpu in range(placement.gpus):
            on = held[layer, :, gpu]
            absent = np.log1p(-np.minimum(chance[:, on] * share[layer, on, gpu], SURE))
            found += 1 - np.exp(absent @ ~held[layer, on])  # of its own none is elsewhere
    return found / len(table.counts)
