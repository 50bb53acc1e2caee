"""Addresses in a row, behind which runs of memory are mapped."""

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from placer.memory.device import Device, Run


class Range:
    """Runs of one or more devices' memory, one after the other, as one array.

    What it shows never changes: who wants another order of pages builds a second range and drops
    the first, between two steps. Remapping under a reader would show it half of each.
    """

    def __init__(self, device: Device, runs: Iterable[Run]) -> None:
        together = coalesced(runs)
        self._device = device
        self.size = sum(run.size for run in together)
        self.address = device.reserve(self.size)
        at = self.address
        try:
            for run in together:
                device.map(at, run)
                at += run.size
        except BaseException:
            self.close()
            raise

    def array(self, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        """All of it. It must not be used after ``close``."""
        return seen_at(self.address, self.size).view(dtype)

    def close(self) -> None:
        if self.size:
            self._device.release(self.address, self.size)
            self.size = 0


def seen_at(address: int, size: int) -> npt.NDArray[np.uint8]:
    """The bytes at mapped addresses."""
    raw = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(memoryview(raw), dtype=np.uint8)


def coalesced(runs: Iterable[Run]) -> list[Run]:
    """The same memory in fewer runs: those that follow each other are one."""
    found: list[Run] = []
    for run in runs:
        last = found[-1] if found else None
        if last and (last.descriptor, last.offset + last.size) == (run.descriptor, run.offset):
            found[-1] = last._replace(size=last.size + run.size)
        else:
            found.append(run)
    return found
