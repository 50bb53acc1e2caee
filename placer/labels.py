"""Which GPU is which: labels cost neither balance nor fan-out, but decide moves and hops."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from placer.arrays import IntArray


def assign(value: npt.NDArray[Any], nodes: int) -> IntArray:
    """[gpus] the column that each row gets, so that ``value`` [gpus, gpus] adds up to most.

    GPUs that share a node go on doing so: nodes are assigned to nodes, each pair being worth what
    its GPUs' best assignment is. That is exact, since GPUs of different nodes never compete.
    """
    size = len(value) // nodes
    blocks = value.reshape(nodes, size, nodes, size).transpose(0, 2, 1, 3)
    inside = np.empty((nodes, nodes, size), dtype=np.intp)
    total = np.empty((nodes, nodes))
    for row, column in np.ndindex(nodes, nodes):
        block = blocks[row, column]
        _, inside[row, column] = linear_sum_assignment(block, maximize=True)
        total[row, column] = block[np.arange(size), inside[row, column]].sum()
    _, node = linear_sum_assignment(total, maximize=True)
    chosen: IntArray = node[:, None] * size + inside[np.arange(nodes), node]
    return chosen.ravel()
