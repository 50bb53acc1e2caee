"""Array types, and how arrays are frozen and digested."""

import hashlib
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
FloatArray = npt.NDArray[np.float64]
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


def pair_sums(
    matrix: FloatArray, left: tuple[IntArray, FloatArray], right: tuple[IntArray, FloatArray]
) -> FloatArray:
    """[layers, places] sum over all pairs of a place's terms: weight of the left one times that of
    the right one times the matrix's entry of their experts.

    matrix: [layers, experts, experts]; left, right: experts and weights [layers, places, terms]
    """
    found = np.empty(left[0].shape[:2])
    width = matrix.shape[2]
    for layer, (e, a, f, b) in enumerate(zip(*left, *right, strict=True)):
        entries = matrix[layer].ravel().take((e * width)[:, :, None] + f[:, None, :])
        found[layer] = ((entries @ b[:, :, None])[:, :, 0] * a).sum(axis=1)
    return found


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
