"""Memory that processes of one user borrow from each other by a socket's path: see lending.py."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from placer.errors import PlacerError
from placer.memory.messages import receive, receive_with, send

CONNECTED_S = 5.0
ATTEMPTS = 3  # a dead HMM is followed by another


class BorrowError(PlacerError):
    """Nothing can be borrowed there."""


@dataclass(frozen=True, slots=True)
class Borrow:
    """Answered with a descriptor, and whether it is filled. Whoever gets it empty fills it, while
    the others wait, and says Filled."""


@dataclass(frozen=True, slots=True)
class Filled:
    """It is, and from now on nobody can write it. Answered with nothing."""


def borrow(path: Path, fill: Callable[[int], None]) -> int:
    """The descriptor, which is the caller's to close; ``fill`` writes into it if nobody has yet.
    Raises BorrowError."""
    for _ in range(ATTEMPTS):
        with _connected(path) as owner, suppress(EOFError, ConnectionError):
            send(owner, Borrow())
            is_filled, (descriptor,) = receive_with(owner)
            if not is_filled:
                _fill(owner, descriptor, fill, path)
            return descriptor
    raise BorrowError(f"the HMM at {path} died {ATTEMPTS} times: see what `placer hmm` says")


def _fill(owner: socket.socket, descriptor: int, fill: Callable[[int], None], path: Path) -> None:
    try:
        fill(descriptor)
        send(owner, Filled())
        receive(owner)
    except (EOFError, ConnectionError) as error:
        os.close(descriptor)
        raise BorrowError(
            f"the HMM at {path} died while its memory was filled: start this process again"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as owner:
        owner.settimeout(CONNECTED_S)
        try:
            owner.connect(str(path))
        except OSError as error:
            said = error.strerror or error
            raise BorrowError(
                f"no HMM at {path} ({said}): start one with `placer hmm --socket {path}`"
            ) from error
        owner.settimeout(None)  # others may take long to fill it
        if user_of(owner) != os.getuid():
            raise BorrowError(f"the HMM at {path} is another user's: start your own")
        yield owner


def user_of(peer: socket.socket) -> int:
    """Whose the process at the other end is; of a path, who listens there."""
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", found)
    return int(user)
