"""What tokens say of ranks and engines: a row of small integers a token, summed over a prompt.

The columns of a row are: of each map that engines serve and each of its ranks, what a token gains
by being owned there; and the factors of the experts that an answer to it uses, a low-rank form of
chances (``factors``), from which follows what an engine would have to read for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray, frozen
from placer.errors import RoutingError
from placer.tables import Vocabulary
from placer.tables.factors import Factors
from placer.tables.made import Tables as Made

Int16 = npt.NDArray[np.int16]
WHOLE = int(np.iinfo(np.int16).max)  # a share of 1
MOST_IDS = 2**24  # of a vocabulary


class Tables(NamedTuple):
    """Tables of integers, whose sums are the same in any order, and so by any kernel.

    row:    [ids] the row of each vocabulary id; others have the last one
    values: [rows, columns] of each map its ranks, in 1 / ``WHOLE``; then the factors
    basis:  [width, cells] what one of each factor adds to the chance that a step uses an expert,
            times the layers that the cell's layer stands for
    every:  those layers
    """

    row: npt.NDArray[np.int32]
    values: Int16
    basis: FloatArray
    every: float


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """``tables``, and ``first``: the first column of each map, and the one after the last."""

    tables: Tables
    first: tuple[int, ...]

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, shares: Sequence[FloatArray], used: Factors | None = None
    ) -> "Lookup":
        """shares: of each map [rows, ranks] from 0 to 1; used: where engines are chosen, too.

        Raises RoutingError for identities that no tokenizer has.
        """
        ids = int(vocabulary.tokens.max(initial=-1)) + 1
        if ids > MOST_IDS or vocabulary.tokens.min(initial=0) < 0:
            raise RoutingError(
                f"token {ids - 1} is no tokenizer's: record token ids, by which requests are known"
            )
        rows = len(shares[0])
        row = np.full(ids, rows - 1, dtype=np.int32)
        row[vocabulary.tokens] = vocabulary.row
        columns = [np.rint(share * WHOLE).astype(np.int16) for share in shares]
        basis, every = np.zeros((0, 0)), 1.0
        if used is not None:
            answered, basis = _of_answers(used)
            columns.append(answered)
            every = used.every
        first = np.cumsum([0, *(share.shape[1] for share in shares)])
        values = frozen(np.concatenate(columns, axis=1))
        return cls(Tables(frozen(row), values, frozen(basis), every), tuple(first.tolist()))

    @classmethod
    def made(cls, tables: Made) -> "Lookup":
        """Of the one map that they are for."""
        return cls.of(tables.devices.vocabulary, [tables.owning.astype(np.float64)], tables.used)

    @classmethod
    def nothing(cls) -> "Lookup":
        """Of tokens nothing is known."""
        values = frozen(np.zeros((1, 1), dtype=np.int16))
        row = frozen(np.zeros(0, dtype=np.int32))
        return cls(Tables(row, values, frozen(np.zeros((0, 0))), 1.0), (0,))


def _of_answers(used: Factors) -> tuple[Int16, FloatArray]:
    """[rows, width] and [width, cells]: what a prompt's tokens tell of its answer's experts, which
    steps read, as far from all requests' mean (the last row) as answers were."""
    mean = used.weights[-1]
    weights = mean + used.further * (used.weights.astype(np.float64) - mean)
    unit = np.maximum(np.abs(weights).max(axis=0), np.finfo(float).tiny) / WHOLE
    return np.rint(weights / unit).astype(np.int16), used.basis * unit[:, None]


def rows_of(tables: Tables, tokens: IntArray) -> IntArray:
    """[tokens] the row of each."""
    rows = np.full(len(tokens), len(tables.values) - 1, dtype=np.int64)
    known = (tokens >= 0) & (tokens < len(tables.row))
    rows[known] = tables.row[tokens[known]]
    return rows
