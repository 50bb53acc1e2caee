"""Which experts tokens use, in few numbers: from the sums over a batch's tokens follows what a step
reads of all experts, however many tokens and layers there are."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray
from placer.tables.counts import TokenTable

Int16 = npt.NDArray[np.int16]
WIDTH = 16
WHOLE = int(np.iinfo(np.int16).max)  # the largest weight
MOST_CELLS = 2048  # layers x experts: more layers are thinned out evenly


class Factors(NamedTuple):
    """weights: [rows, width] of each token
    basis:   [width, cells] what one of each adds to the chance that a token uses an expert, times
             the layers that the cell's layer stands for
    every:   those layers
    further: from the mean than a prompt's tokens are its answer's, as ``answers.further`` found;
        1 where nobody looked
    """

    weights: Int16
    basis: FloatArray
    every: float
    further: float = 1.0


def factors(table: TokenTable) -> Factors:
    """The truncated singular value decomposition of tokens' chances [rows, layers x experts], each
    token as often as it occurs."""
    layers, rows, experts = table.counts.shape
    kept = thinned(layers, experts)
    chance = (table.counts[kept] / table.times[:, None]).transpose(1, 0, 2).reshape(rows, -1)
    often = table.times.astype(np.float64)
    often[-1] = 0  # the sum of all others
    _, axes = np.linalg.eigh((chance * often[:, None]).T @ chance)
    basis = axes[:, ::-1][:, :WIDTH].T
    weight = chance @ basis.T
    unit = np.maximum(np.abs(weight).max(axis=0), np.finfo(float).tiny) / WHOLE
    every = layers / len(kept)
    stand_for = (basis * unit[:, None] * every).astype(np.float32)  # as in a file
    return Factors(np.rint(weight / unit).astype(np.int16), stand_for.astype(np.float64), every)


def thinned(layers: int, experts: int) -> IntArray:
    """The layers that factors are of."""
    return np.arange(0, layers, -(-layers * experts // MOST_CELLS))
