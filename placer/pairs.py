"""Counting pairs of a token's experts, of one layer or of two: all of them, in any order."""

import numba

from placer.arrays import IntArray


@numba.njit("void(i8[:, ::1], i8[:, ::1], i8[:, ::1])", cache=True, nogil=True)
def count_pairs(ids: IntArray, others: IntArray, counts: IntArray) -> None:
    """Add one to ``counts[i, j]`` for every token that has i in ``ids`` and j in ``others``.

    ids, others: [tokens, top_k] experts; counts: [experts, experts]
    """
    for token in range(len(ids)):
        for i in ids[token]:
            for j in others[token]:
                counts[i, j] += 1
