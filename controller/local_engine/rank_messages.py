"""What the engine says to its ranks. Each message but the first has one answer; they take turns.

Both ends are this package in processes of one user, over a socket that only they have: hence
pickle.
"""

import pickle
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.shared_memory import Layout
from placer.arrays import IntArray

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message: who the rank is, and where its memory is. It has no answer."""

    rank: int
    folder: Path
    layout: Layout


@dataclass(frozen=True, slots=True)
class Link:
    """Forget the sockets to your peers: new ones follow, one a peer."""

    peers: int


@dataclass(frozen=True, slots=True)
class Serve:
    """Steps go by this map from now on."""

    served: ExpertMap


@dataclass(frozen=True, slots=True)
class Staged:
    """The change that is to come; epoch 0 for none."""

    epoch: int
    digest: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one request, from position ``start`` on.

    seat:    its place in the KV cache
    samples: whether the token after them is wanted
    """

    seat: int
    start: int
    tokens: tuple[int, ...]
    samples: bool


@dataclass(frozen=True, slots=True)
class Step:
    """Compute these; answered by ``Stepped``, or by ``Aborted`` if a peer went away."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """next_tokens: of the pieces that sample, in order; experts: [tokens, layers, top_k]"""

    next_tokens: list[int]
    experts: IntArray


@dataclass(frozen=True, slots=True)
class Aborted:
    """The step can be made again."""


@dataclass(frozen=True, slots=True)
class CopyPage:
    """Copy a page of rank ``source`` to one of your own; answered by its digest."""

    layer: int
    source: int
    source_page: int
    page: int


@dataclass(frozen=True, slots=True)
class Digests:
    """Asks for the digests of a layer's slots, empty for empty ones."""

    layer: int


@dataclass(frozen=True, slots=True)
class Report:
    """Asks for what the rank holds: ``Holds``."""


@dataclass(frozen=True, slots=True)
class Holds:
    served: ExpertMap
    staged: Staged


Message: TypeAlias = Setup | Link | Serve | Staged | Step | CopyPage | Digests | Report


def send(to: socket.socket, message: object) -> None:
    data = pickle.dumps(message)
    to.sendall(_LENGTH.pack(len(data)) + data)


def receive(source: socket.socket) -> Any:
    """Raises EOFError if the other end is gone."""
    (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    return pickle.loads(_exactly(source, length))


def _exactly(source: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = source.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
