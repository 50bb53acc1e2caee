"""The assignment problem, compiled: there are a thousand small ones a plan."""

import numba
import numpy as np

from placer.arrays import FloatArray, IntArray


@numba.njit("void(f8[:, :, ::1], i8[:, ::1])", cache=True, nogil=True)
def assign_all(value: FloatArray, found: IntArray) -> None:
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
