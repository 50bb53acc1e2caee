"""Experimental: the memory of a CUDA device, by its virtual memory management. No GPU has run this;
tests run it against a stand-in driver.

The driver maps whole allocations only (``cuMemMap`` takes no offset but 0). So memory that is to be
mapped on its own, as a page of experts is, is an allocation of its own:
``Run(descriptor, 0, size)``.
"""

import os
from typing import Any

from placer.extras import MissingError
from placer.memory.device import DeviceError, Run

try:
    from cuda.bindings import driver
except ImportError as error:
    raise MissingError("memory of CUDA devices", "cuda", "cuda-bindings") from error

FILE = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


class CudaDevice:
    """One device; its primary context becomes that of the thread that makes this.

    The addresses are the device's: no processor may read them. ``create`` hands the memory over to
    the descriptor, and keeps no handle of its own.
    """

    def __init__(self, ordinal: int) -> None:
        _ask(driver.cuInit, 0)
        device = _ask(driver.cuDeviceGet, ordinal)
        _ask(driver.cuCtxSetCurrent, _ask(driver.cuDevicePrimaryCtxRetain, device))
        self._kind = driver.CUmemAllocationProp()
        self._kind.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._kind.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._kind.location.id = ordinal
        self._kind.requestedHandleTypes = FILE
        self._access = driver.CUmemAccessDesc()
        self._access.location = self._kind.location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        finest = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self.granularity = int(_ask(driver.cuMemGetAllocationGranularity, self._kind, finest))
        self._mapped: dict[int, int] = {}  # sizes, by address

    def create(self, size: int) -> int:
        handle = _ask(driver.cuMemCreate, size, self._kind, 0)
        try:
            descriptor = int(_ask(driver.cuMemExportToShareableHandle, handle, FILE, 0))
        finally:
            _ask(driver.cuMemRelease, handle)
        try:
            self._clear(Run(descriptor, 0, size))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def reserve(self, size: int) -> int:
        return int(_ask(driver.cuMemAddressReserve, size, 0, 0, 0))

    def map(self, address: int, run: Run) -> None:
        if run.offset:
            raise DeviceError(
                f"a run at {run.offset} of what is created: CUDA maps whole allocations, so create "
                "one for each run"
            )
        self.unmap(address, run.size)
        handle = _ask(driver.cuMemImportFromShareableHandle, run.descriptor, FILE)
        try:
            _ask(driver.cuMemMap, address, run.size, 0, handle, 0)
        finally:
            _ask(driver.cuMemRelease, handle)  # what is mapped stays
        self._mapped[address] = run.size
        _ask(driver.cuMemSetAccess, address, run.size, [self._access], 1)

    def unmap(self, address: int, size: int) -> None:
        inside = range(address, address + size)
        for start, length in sorted(self._mapped.items()):
            if start in inside and start + length <= inside.stop:
                _ask(driver.cuMemUnmap, start, length)
                del self._mapped[start]
            elif start < inside.stop and address < start + length:
                raise DeviceError(f"{length} bytes are mapped as one: unmap all of them, or none")

    def release(self, address: int, size: int) -> None:
        self.unmap(address, size)
        _ask(driver.cuMemAddressFree, address, size)

    def _clear(self, run: Run) -> None:
        """The driver does not promise that memory is zero."""
        address = self.reserve(run.size)
        try:
            self.map(address, run)
            _ask(driver.cuMemsetD8, address, 0, run.size)
            _ask(driver.cuCtxSynchronize)
        finally:
            self.release(address, run.size)


def _ask(call: Any, *arguments: Any) -> Any:
    """What a driver's function returns. Raises DeviceError."""
    status, *found = call(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"{call.__name__}: {status.name}")
    return found[0] if found else None
