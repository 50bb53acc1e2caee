"""A device of this machine's own memory: files in memory that processes map."""

import ctypes
import fcntl
import os

from placer.memory.device import DeviceError, Run

PROT_NONE, PROT_READ_WRITE = 0, 3
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000
NOTHING = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE

_libc = ctypes.CDLL(None, use_errno=True)
# Python's mmap module cannot say at which address.
_mmap, _munmap = _libc.mmap, _libc.munmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_fallocate = _libc.fallocate  # nor can its os module say that holes are wanted
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
KEEP_SIZE, PUNCH_HOLE = 1, 2
_FAILED = ctypes.c_void_p(-1).value


class Memfd:
    granularity = os.sysconf("SC_PAGE_SIZE")

    def create(self, size: int) -> int:
        descriptor = os.memfd_create("placer-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
        except OSError as error:
            os.close(descriptor)
            raise DeviceError(f"no {size} bytes of memory: {error.strerror}") from error
        return descriptor

    def give_back(self, run: Run) -> None:
        """To the system; it reads as zeros, and whoever touches it has it again."""
        if _fallocate(run.descriptor, PUNCH_HOLE | KEEP_SIZE, run.offset, run.size):
            raise DeviceError(f"{run} is not given back: {os.strerror(ctypes.get_errno())}")

    def reserve(self, size: int) -> int:
        return _map(None, size, PROT_NONE, NOTHING, -1, 0)

    def map(self, address: int, run: Run) -> None:
        _map(address, run.size, PROT_READ_WRITE, MAP_SHARED | MAP_FIXED, run.descriptor, run.offset)

    def unmap(self, address: int, size: int) -> None:
        _map(address, size, PROT_NONE, NOTHING | MAP_FIXED, -1, 0)

    def release(self, address: int, size: int) -> None:
        if _munmap(address, size):
            raise DeviceError(f"munmap of {size} bytes: {os.strerror(ctypes.get_errno())}")


class CopyOnWrite(Memfd):
    """Memory that nobody changes for others: a page that is written becomes the writer's own, and
    reserved addresses read as zeros that take no memory."""

    def reserve(self, size: int) -> int:
        return _map(None, size, PROT_READ_WRITE, NOTHING, -1, 0)

    def map(self, address: int, run: Run) -> None:
        _map(
            address, run.size, PROT_READ_WRITE, MAP_PRIVATE | MAP_FIXED, run.descriptor, run.offset
        )


def seal(descriptor: int) -> None:
    """Let nobody write this memory any more, or change its size."""
    fcntl.fcntl(
        descriptor,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
    )


def _map(
    address: int | None, size: int, access: int, flags: int, descriptor: int, offset: int
) -> int:
    found: int = _mmap(address, size, access, flags, descriptor, offset)
    if found == _FAILED:
        raise DeviceError(f"mmap of {size} bytes: {os.strerror(ctypes.get_errno())}")
    return found
