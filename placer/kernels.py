"""How Numba compiles the inner loops: with the machine's floats, kept on disk, without the GIL."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(function: Kernel) -> Kernel:
    return _compiled(function)


def inlined(function: Kernel) -> Kernel:
    return _compiled(function, inline="always")


def in_place(function: Kernel) -> Kernel:
    """Compiled, of what allocates nothing: references to arrays are not counted, which at every
    look at one would be half of the time."""
    return _compiled(function, _nrt=False)


def _compiled(function: Kernel, **more: Any) -> Kernel:
    kernel: Kernel = numba.njit(cache=True, nogil=True, error_model="numpy", **more)(function)
    return kernel
