"""Messages and descriptors between processes of one user over sockets that only they have: hence
pickle."""

import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("<Q")
MOST = 250  # descriptors that go with a message; Linux lets 253


def send(to: socket.socket, message: object, descriptors: Sequence[int] = ()) -> None:
    data = pickle.dumps(message)
    header = _LENGTH.pack(len(data))
    if descriptors:
        socket.send_fds(to, [header], list(descriptors))
        to.sendall(data)
    else:
        to.sendall(header + data)


def receive(source: socket.socket) -> Any:
    """Raises EOFError if the other end is gone."""
    message, descriptors = receive_with(source)
    assert not descriptors
    return message


def receive_with(source: socket.socket) -> tuple[Any, list[int]]:
    """The message and its descriptors, which are the caller's to close."""
    header, descriptors, _, _ = socket.recv_fds(source, _LENGTH.size, MOST)
    if len(header) < _LENGTH.size:
        header += _exactly(source, _LENGTH.size - len(header))
    (length,) = _LENGTH.unpack(header)
    return pickle.loads(_exactly(source, length)), descriptors


def _exactly(source: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = source.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
