"""A model's weights in memory, as one file that says of itself what it holds.

    length | header, JSON          room for HEADER_ROOM bytes, of which only those used take memory
    tensors, each at a multiple of ALIGNMENT

The header is written last.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import torch

from placer.agent.vllm.weights.checkpoint import File

HEADER_ROOM = 2**26
ALIGNMENT = 64  # of a cache line, which no kernel needs more than
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor, contiguous. dtype: as PyTorch calls it, such as bfloat16"""

    name: str
    is_parameter: bool
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    """settings: what their layout depends on; model, files: the checkpoint that they are from"""

    settings: Mapping[str, str]
    model: str
    files: Mapping[str, File]
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    name: str
    tensor: torch.Tensor
    is_parameter: bool


class Writer:
    """Fills an empty file."""

    def __init__(self, descriptor: int, header: Header) -> None:
        self._descriptor, self._header, self._end = descriptor, header, HEADER_ROOM
        self._names: set[str] = set()

    def add(self, tensors: Iterable[Named]) -> None:
        """Those whose names are new. What has several names is written once."""
        new = [one for one in tensors if one.name not in self._names]
        offsets: dict[tuple[int, int], int] = {}  # while they all live, so that addresses differ
        for one in new:
            data = one.tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
            where = (one.tensor.data_ptr(), len(data))
            if where not in offsets:
                offsets[where] = self._end
                self._write(data.data, self._end)
                self._end += -(-len(data) // ALIGNMENT) * ALIGNMENT
            dtype, shape = str(one.tensor.dtype).removeprefix("torch."), tuple(one.tensor.shape)
            entry = Entry(one.name, one.is_parameter, dtype, shape, offsets[where], len(data))
            self._header.entries.append(entry)
            self._names.add(one.name)

    def close(self) -> None:
        """Write the header."""
        os.ftruncate(self._descriptor, self._end)
        text = json.dumps(asdict(self._header)).encode()
        assert len(text) <= HEADER_ROOM - _LENGTH.size
        self._write(text, _LENGTH.size)
        self._write(_LENGTH.pack(len(text)), 0)

    def _write(self, data: memoryview | bytes, at: int) -> None:
        view = memoryview(data)
        while view:  # two gigabytes at most at a time
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written


def read_header(descriptor: int) -> Header:
    (length,) = _LENGTH.unpack(os.pread(descriptor, _LENGTH.size, 0))
    found = json.loads(os.pread(descriptor, length, _LENGTH.size))
    files = {name: File(**one) for name, one in found["files"].items()}
    entries = [Entry(**{**one, "shape": tuple(one["shape"])}) for one in found["entries"]]
    return Header(found["settings"], found["model"], files, entries)
