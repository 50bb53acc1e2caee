"""Which GPU is which: labels cost neither balance nor fan-out, but decide moves and hops."""

from typing import Any

import numba
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
    found = np.empty(value.shape[:2], dtype=np.int64)
    _assign_all(np.ascontiguousarray(value), found)
    return found


@numba.njit("void(f8[:, :, ::1], i8[:, ::1])", cache=True, nogil=True)
def _assign_all(value: FloatArray, found: IntArray) -> None:
    """The assignments worth most, by shortest augmenting paths: row after row, over the prices of
    rows and columns. There are a thousand small ones a plan, which cost SciPy 7 us each to enter.
    """
    problems, size, _ = value.shape
    for problem in range(problems):
        worth = value[problem]
        row_price, price = np.zeros(size), np.zeros(size)
        row_of, column_of = np.full(size, -1), found[problem]
        before, dearer = np.empty(size, np.int64), np.empty(size)
        for start in range(size):
            # The nearest free column, in what it loses.
            dearer[:] = np.inf
            done = np.zeros(size, np.bool_)
            row, column = start, -1
            so_far = 0.0
            while row >= 0:
                column, nearest = -1, np.inf
                for other in range(size):
                    if done[other]:
                        continue
                    cost = so_far + row_price[row] - price[other] - worth[row, other]
                    if cost < dearer[other]:
                        dearer[other], before[other] = cost, row
                    if dearer[other] < nearest:
                        column, nearest = other, dearer[other]
                done[column] = True
                so_far, row = nearest, row_of[column]
            row_price[start] -= so_far
            for other in range(size):
                if done[other] and other != column:
                    gone = so_far - dearer[other]
                    price[other] -= gone
                    row_price[row_of[other]] -= gone
            # Each on the way takes the column found for it.
            while row != start:
                row = before[column]
                row_of[column] = row
                column, column_of[row] = column_of[row], column
