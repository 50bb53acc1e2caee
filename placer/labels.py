"""Which GPU is which: labels cost neither balance nor fan-out, but decide moves and hops."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from placer.arrays import FloatArray, IntArray


def assign(value: npt.NDArray[Any], nodes: int) -> IntArray:
    """[layers, gpus] the column that each row gets, so that ``value`` [layers, gpus, gpus] adds up
    to most in every layer.

    GPUs that share a node go on doing so: nodes are assigned to nodes, each pair being worth what
    its GPUs' best assignment is. That is exact, since GPUs of different nodes never compete.
    """
    layers, gpus, _ = value.shape
    size = gpus // nodes
    blocks = value.reshape(layers, nodes, size, nodes, size).swapaxes(2, 3)
    blocks = blocks.reshape(-1, size, size).astype(np.float64)
    inside = _assigned(blocks)
    total = np.take_along_axis(blocks, inside[:, :, None], axis=2).sum(axis=(1, 2))
    node = _assigned(total.reshape(layers, nodes, nodes))
    inside = inside.reshape(layers, nodes, nodes, size)
    chosen = np.take_along_axis(inside, node[:, :, None, None], axis=2)[:, :, 0]
    return (node[:, :, None] * size + chosen).reshape(layers, gpus)


def _assigned(value: FloatArray) -> IntArray:
    """[problems, rows] the column of each row. value: [problems, rows, columns]"""
    found = np.tile(np.arange(value.shape[1]), (len(value), 1))  # of zeros, what SciPy gives, too
    for at in np.flatnonzero(value.any(axis=(1, 2))):
        _, found[at] = linear_sum_assignment(value[at], maximize=True)
    return found
