"""The memory process of one device, ElasticMoE's HMM.

It owns the device's arena: reads weights into it, copies pages from other devices' arenas and says
what is in it, all of that beside ranks that compute on it. It allots nothing: which page is for
what its engine says.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from controller.elastic.arena import FREE, Arena, Layout
from placer.arrays import digest
from placer.clock import SystemClock
from placer.memory.device import DeviceError
from placer.memory.memfd import Memfd
from placer.memory.process import NEVER, answer

CHUNK = 2**20  # bytes that are copied before the rate is looked at
Bytes = npt.NDArray[np.uint8]


class Weights(Protocol):
    """Where weights come from; it is sent to the process. experts: of a layer"""

    @property
    def experts(self) -> int: ...

    def read_dense(self, into: Bytes) -> None: ...

    def read_expert(self, layer: int, expert: int, into: Bytes) -> None:
        """Each tensor by its offset, once."""


@dataclass(frozen=True, slots=True)
class Create:
    """Make an arena; its descriptor is the answer's."""

    layout: Layout
    weights: Weights


@dataclass(frozen=True, slots=True)
class Adopt:
    """Take over the arena whose descriptor comes with this."""

    layout: Layout
    weights: Weights


@dataclass(frozen=True, slots=True)
class Export:
    """Answered with the arena's descriptor."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A page and whose weights it is to hold."""

    page: int
    layer: int
    expert: int


@dataclass(frozen=True, slots=True)
class Load:
    """Read from the checkpoint; answered with digests: of the dense weights, if those were asked
    for, and of the pages."""

    dense: bool
    pages: Sequence[Filled]


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy from the arena that comes with this.

    source: its name; dense: whether the dense weights, too
    pages:  of the source, and what becomes of them here
    rate:   bytes a second at most; 0 for as fast as can be
    """

    source: str
    dense: bool
    pages: Sequence[tuple[int, Filled]]
    rate: float


@dataclass(frozen=True, slots=True)
class CopySeats:
    """Copy sequences' keys and values from the arena that comes with this.

    seats: there, here, and the tokens that are computed
    rows, token_size: a seat is [rows, context, token_size] bytes
    """

    source: str
    seats: Sequence[tuple[int, int, int]]
    rows: int
    token_size: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Look at that arena no more."""

    source: str


@dataclass(frozen=True, slots=True)
class Free:
    """Nobody needs these pages; their memory stays."""

    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Vacate:
    """Nobody needs anything of it."""


@dataclass(frozen=True, slots=True)
class Hold:
    """These pages are needed, and no others: have memory behind them, which makes copies into them
    four times as fast, and give back what is behind the others."""

    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Digests:
    """Answered with those of the dense weights, if those are asked for, and of these pages."""

    dense: bool
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Report:
    """Asks for the page table and the memory behind the arena: ``Holds``."""


@dataclass(frozen=True, slots=True)
class Holds:
    """table: [pages] layer * experts + expert, FREE for none; resident_bytes: of the whole arena"""

    table: list[int]
    resident_bytes: int


class Hmm:
    def __init__(self) -> None:
        self.device = Memfd()
        self._sources: dict[str, Arena] = {}

    def reply(self, message: Any, descriptors: list[int]) -> tuple[object, Sequence[int]]:
        match message:
            case Create(layout, weights):
                descriptor = self.device.create(layout.capacity)
                self.weights = weights
                self.arena = Arena(self.device, layout, descriptor)
                self.arena.vacate()
                return None, [descriptor]
            case Adopt(layout, weights):
                self.weights = weights
                self.arena = Arena(self.device, layout, os.dup(descriptors[0]))
            case Export():
                return None, [self.arena.descriptor]
            case Copy(source):
                return self._copy(message, self._source(source, descriptors)), ()
            case CopySeats(source):
                return self._copy_seats(message, self._source(source, descriptors)), ()
            case Forget(source):
                if (arena := self._sources.pop(source, None)) is not None:
                    arena.close()
                    os.close(arena.descriptor)
            case _:
                return self._own(message), ()
        return None, ()

    def _own(self, message: Any) -> object:
        """What is about this arena alone."""
        match message:
            case Load(dense, pages):
                return self._load(dense, pages)
            case Free(pages):
                self.arena.table[list(pages)] = FREE
            case Vacate():
                self.arena.vacate()
            case Hold(pages):
                self.arena.hold(pages)
            case Digests(dense, pages):
                every = [self.arena.dense()] if dense else []
                return [digest(one) for one in (*every, *map(self.arena.page, pages))]
            case Report():
                blocks = os.fstat(self.arena.descriptor).st_blocks
                return Holds(self.arena.table.tolist(), blocks * 512)
        return None

    def _source(self, name: str, descriptors: list[int]) -> Arena:
        """Mapped once: what it holds may change, where it is does not."""
        if name not in self._sources:
            kept = os.dup(descriptors[0])
            self._sources[name] = Arena(self.device, self.arena.layout, kept)
        return self._sources[name]

    def _load(self, dense: bool, pages: Sequence[Filled]) -> list[str]:
        digests = []
        if dense:
            self.weights.read_dense(self.arena.dense())
            digests.append(digest(self.arena.dense()))
        for one in pages:
            with self._filling(one) as page:
                self.weights.read_expert(one.layer, one.expert, page)
            digests.append(digest(page))
        return digests

    def _copy(self, message: Copy, source: Arena) -> int:
        """The bytes that were copied."""
        pace = _Pace(message.rate)
        if message.dense:
            for at, chunk in pace.chunks(source.dense()):
                self.arena.dense()[at : at + len(chunk)] = chunk
        for theirs, one in message.pages:
            if source.table[theirs] != self._entry(one):
                raise DeviceError(
                    f"page {theirs} of {message.source} does not hold expert {one.expert} of layer "
                    f"{one.layer}: copy it from where it is"
                )
            with self._filling(one):
                for at, chunk in pace.chunks(source.page(theirs)):
                    self.arena.write(one.page, at, chunk)
        return pace.copied

    def _copy_seats(self, message: CopySeats, source: Arena) -> int:
        copied = 0
        for there, here, tokens in message.seats:
            size = tokens * message.token_size
            theirs, own = (
                seat.reshape(message.rows, -1)[:, :size]
                for seat in (source.seat(there), self.arena.seat(here))
            )
            own[:] = theirs
            copied += own.size
        return copied

    def _entry(self, one: Filled) -> int:
        return one.layer * self.weights.experts + one.expert

    def _filling(self, one: Filled) -> "_Filling":
        return _Filling(self.arena, one.page, self._entry(one))


class _Filling:
    """The page table tells of a page once all of it is there."""

    def __init__(self, arena: Arena, page: int, entry: int) -> None:
        self._arena, self._page, self._entry = arena, page, entry

    def __enter__(self) -> Bytes:
        self._arena.table[self._page] = FREE
        return self._arena.page(self._page)

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed is None:
            self._arena.table[self._page] = self._entry


class _Pace:
    """Copies in chunks, no faster than the rate."""

    def __init__(self, rate: float) -> None:
        self._rate, self._clock = rate, SystemClock()
        self._begun_s = self._clock.monotonic()
        self.copied = 0

    def chunks(self, source: Bytes) -> Iterator[tuple[int, Bytes]]:
        """And where each begins."""
        for at in range(0, len(source), CHUNK):
            chunk = source[at : at + CHUNK]
            yield at, chunk
            self.copied += len(chunk)
            if self._rate:
                due_s = self._begun_s + self.copied / self._rate
                self._clock.wait(NEVER, max(due_s - self._clock.monotonic(), 0.0))


def main(descriptor: int) -> None:
    answer(descriptor, Hmm().reply)
