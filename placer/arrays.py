"""Array types, and how arrays are frozen and digested."""

import hashlib
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
Scalar = TypeVar("Scalar", bound=np.generic)


def frozen(array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """The same numbers, read-only and C-contiguous; copied only if it has to be."""
    result = np.ascontiguousarray(array).view()
    result.flags.writeable = False
    return result


def native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same numbers in a type that all of NumPy calculates with: in this machine's byte order,
    and signed where the unsigned type has no larger signed one."""
    dtype = np.dtype(np.int64) if array.dtype.kind == "u" and array.dtype.itemsize == 8 else None
    return array.astype(dtype or array.dtype.newbyteorder("="), copy=False)


def pair_entries(matrix: FloatArray, rows: IntArray, columns: IntArray) -> Iterator[FloatArray]:
    """Of each layer, [places, terms, terms] the entries of all pairs of a place's rows and columns.

    matrix: [layers, experts, experts]; rows, columns: experts [layers, places, terms]
    """
    width = matrix.shape[2]
    for of_layer, row, column in zip(matrix, rows, columns, strict=True):
        yield of_layer.ravel().take((row * width)[:, :, None] + column[:, None, :])


def pair_sums(
    matrix: FloatArray, left: tuple[IntArray, FloatArray], right: tuple[IntArray, FloatArray]
) -> FloatArray:
    """[layers, places] sum over all pairs of a place's terms: weight of the left one times that of
    the right one times the matrix's entry of their experts.

    matrix: [layers, experts, experts]; left, right: experts and weights [layers, places, terms]
    """
    entries = pair_entries(matrix, left[0], right[0])
    found = [
        ((one @ right_weight[:, :, None])[:, :, 0] * left_weight).sum(axis=1)
        for one, left_weight, right_weight in zip(entries, left[1], right[1], strict=True)
    ]
    return np.array(found)


def digest(*parts: npt.NDArray[Any] | str) -> str:
    """``sha256:...`` over the parts' types, shapes and bytes (little-endian)."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            sha.update(part.encode() + b"\0")
        else:
            little = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<"))
            sha.update(f"{little.dtype.str}{little.shape}".encode())
            sha.update(little.tobytes())
    return f"sha256:{sha.hexdigest()}"
