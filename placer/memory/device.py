"""What a process asks of a device's memory: the port that memfd.py and cuda.py fill.

Physical memory and addresses are apart, as in CUDA's virtual memory management: memory is created
once and handed to other processes as descriptors; each maps it where it likes, and may map
something else there later.
"""

from typing import NamedTuple, Protocol

from placer.errors import PlacerError


class DeviceError(PlacerError):
    """A device that does not do what was asked of it."""


class Run(NamedTuple):
    """Memory in one piece: ``size`` bytes from ``offset`` of what a descriptor stands for."""

    descriptor: int
    offset: int
    size: int


class Device(Protocol):
    """Memory of one device. Sizes, offsets and addresses are multiples of ``granularity`` bytes.

    Raises DeviceError where the system says no.
    """

    granularity: int

    def create(self, size: int) -> int:
        """The descriptor of new memory, all zero; it lives as long as a descriptor or a mapping."""

    def reserve(self, size: int) -> int:
        """The first of ``size`` addresses with nothing behind them yet."""

    def map(self, address: int, run: Run) -> None:
        """Put memory behind reserved addresses, in place of what is there."""

    def unmap(self, address: int, size: int) -> None:
        """Leave nothing behind these addresses, which stay reserved."""

    def release(self, address: int, size: int) -> None:
        """Give addresses back, and what is mapped there."""


def padded(size: int, granularity: int) -> int:
    """The next multiple."""
    return -(-size // granularity) * granularity
