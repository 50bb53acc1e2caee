"""Which GPU is which: labels cost neither balance nor fan-out, but decide moves and hops."""

from typing import Any

import numpy as np
import numpy.typing as npt

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
    from placer.assignment import assign_all  # starts Numba: only where it is asked for

    found = np.empty(value.shape[:2], dtype=np.int64)
    assign_all(np.ascontiguousarray(value), found)
    return found
