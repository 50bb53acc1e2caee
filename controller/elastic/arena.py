"""An arena: all memory of one device that an engine uses, as one piece, with its page table in it.

    journal | dense weights | seats of the KV cache | pages of experts

The page table says which expert a page holds, and is written after the page is: whatever is killed
when, what it says is there is there.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placer.memory.device import Run, padded
from placer.memory.memfd import Memfd
from placer.memory.ranges import Range, coalesced

FREE = -1


@dataclass(frozen=True, slots=True)
class Layout:
    """How much of everything an arena has; sizes in bytes, each padded to ``granularity``.

    seats: sequences that the KV cache has room for; pages: experts
    """

    granularity: int
    dense_size: int
    seat_size: int
    seats: int
    page_size: int
    pages: int

    @property
    def seat_stride(self) -> int:
        return padded(self.seat_size, self.granularity)

    @property
    def page_stride(self) -> int:
        return padded(self.page_size, self.granularity)

    @property
    def journal_room(self) -> int:
        return padded(8 * self.pages, self.granularity)

    @property
    def dense_room(self) -> int:
        return padded(self.dense_size, self.granularity)

    @property
    def seats_at(self) -> int:
        return self.journal_room + self.dense_room

    @property
    def pages_at(self) -> int:
        return self.seats_at + self.seats * self.seat_stride

    @property
    def capacity(self) -> int:
        return self.pages_at + self.pages * self.page_stride

    def dense(self, arena: int) -> Run:
        return Run(arena, self.journal_room, self.dense_room)

    def cache(self, arena: int) -> Run:
        """All seats."""
        return Run(arena, self.seats_at, self.seats * self.seat_stride)

    def page(self, arena: int, page: int) -> Run:
        return Run(arena, self.pages_at + page * self.page_stride, self.page_stride)


class Arena:
    """One arena as a process sees it that may look at all of it."""

    def __init__(self, device: Memfd, layout: Layout, descriptor: int) -> None:
        self._device, self.layout, self.descriptor = device, layout, descriptor
        self._range = Range(device, [Run(descriptor, 0, layout.capacity)])
        self._bytes = self._range.array()
        self._touched: set[int] = set()  # pages behind which this process saw to memory
        self._holds_rest = False
        self.table = self._bytes[: 8 * layout.pages].view(np.int64)

    def vacate(self) -> None:
        """All pages are free, as in a new one."""
        self.table[:] = FREE

    def hold(self, pages: Collection[int]) -> None:
        """Have memory behind what is not for experts and behind these pages. The others are free,
        and there is none behind them."""
        layout, wanted = self.layout, set(pages)
        free = [page for page in range(layout.pages) if page not in wanted]
        new = [page for page in wanted - self._touched if self.table[page] == FREE]
        self._touched = (self._touched & wanted).union(new)
        self.table[free] = FREE
        for run in self._pages(free):
            self._device.give_back(run)
        rest = [] if self._holds_rest else [Run(self.descriptor, 0, layout.pages_at)]
        self._holds_rest = True
        for run in (*rest, *self._pages(new)):
            # To read is enough.
            self._bytes[run.offset : run.offset + run.size : layout.granularity].max()

    def _pages(self, pages: Iterable[int]) -> list[Run]:
        return coalesced(self.layout.page(self.descriptor, page) for page in sorted(pages))

    def dense(self) -> npt.NDArray[np.uint8]:
        at = self.layout.journal_room
        return self._bytes[at : at + self.layout.dense_size]

    def seat(self, seat: int) -> npt.NDArray[np.uint8]:
        at = self.layout.seats_at + seat * self.layout.seat_stride
        return self._bytes[at : at + self.layout.seat_size]

    def page(self, page: int) -> npt.NDArray[np.uint8]:
        at = self.layout.pages_at + page * self.layout.page_stride
        return self._bytes[at : at + self.layout.page_size]

    def write(self, page: int, at: int, chunk: npt.NDArray[np.uint8]) -> None:
        """Copy into a page, from ``at`` on."""
        if page in self._touched:
            self.page(page)[at : at + len(chunk)] = chunk
            return
        begin = self.layout.pages_at + page * self.layout.page_stride + at
        while len(chunk):  # by the kernel, which saves a fault a page, half of the time
            written = os.pwrite(self.descriptor, chunk.data, begin)
            begin, chunk = begin + written, chunk[written:]

    def close(self) -> None:
        del self._bytes, self.table
        self._range.close()
