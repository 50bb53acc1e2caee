"""A process that owns memory which others fill once and then share, ElasticMoE's HMM.

``serve`` keeps the descriptors of that memory and of the socket, and does nothing else; the process
that it starts answers who comes to the socket. If that one dies, the next has the same memory, and
nobody who waits is sent away.
"""

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from placer.errors import PlacerError
from placer.memory.borrowing import Borrow, Filled, user_of
from placer.memory.keeper import Give, Keep, Keeper
from placer.memory.memfd import Memfd, seal
from placer.memory.messages import receive_with, send
from placer.memory.process import Process, answer

SOCKET, MEMORY = "socket", "memory"


def serve(path: Path) -> None:
    """Until interrupted. Raises PlacerError if ``path`` is in use, or cannot be."""
    keeper = Keeper()
    with _listening(path) as listener:
        keeper.reply(Keep(SOCKET), [listener.fileno()])
        while True:
            hmm = Process(__name__, "the HMM")
            hmm.socket.setblocking(True)
            try:
                answer(hmm.socket.detach(), keeper.reply)
            finally:
                hmm.end()
            if hmm.process.returncode > 0:  # a fault of its own, which the next would have, too
                raise PlacerError(f"the HMM ended with code {hmm.process.returncode}: see above")


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Whoever finds the path can connect, and only its owner finds it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        _remove_left_over(path)
        begun = path.with_name(f"{path.name}.{os.getpid()}")
        before = os.umask(0o177)
        try:
            listener.bind(str(begun))
            listener.listen()
            os.link(begun, path)
        except OSError as error:
            raise PlacerError(
                f"cannot listen at {path} ({error.strerror or error}): choose another --socket"
            ) from error
        finally:
            os.umask(before)
            with suppress(OSError):
                begun.unlink()
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_left_over(path: Path) -> None:
    """A socket at which nobody listens; anything else is in the way."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
        try:
            tried.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError:
            pass  # ``bind`` says why
        else:
            raise PlacerError(f"another HMM listens at {path}: use it, or choose another --socket")


class Hmm:
    """What the process has: memory, or none yet."""

    def __init__(self, keeper: socket.socket) -> None:
        self._keeper, self._keeping = keeper, threading.Lock()
        self._turn = threading.Lock()  # one fills, the others wait
        self._memory = next(iter(self.ask_keeper(Give(MEMORY))), None)

    def ask_keeper(self, message: object, *descriptors: int) -> list[int]:
        with self._keeping:
            send(self._keeper, message, descriptors)
            return receive_with(self._keeper)[1]

    def lend(self, borrower: socket.socket) -> None:
        """Answer one who came, until he goes."""
        with borrower, suppress(OSError, EOFError):
            if user_of(borrower) != os.getuid():
                return
            assert isinstance(receive_with(borrower)[0], Borrow)
            with self._turn:
                if self._memory is None:
                    self._memory = _filled_by(borrower)
                    self.ask_keeper(Keep(MEMORY), self._memory)
                    send(borrower, None)
                    return
            send(borrower, True, [self._memory])


def _filled_by(borrower: socket.socket) -> int:
    """New memory that he has filled. Raises EOFError or OSError if he went away."""
    memory = Memfd().create(0)
    try:
        send(borrower, False, [memory])
        message: Any = receive_with(borrower)[0]
        assert isinstance(message, Filled)
        seal(memory)
    except BaseException:
        os.close(memory)
        raise
    return memory


def main(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as keeper:
        hmm = Hmm(keeper)
        (found,) = hmm.ask_keeper(Give(SOCKET))
        watched = select.poll()
        watched.register(found, select.POLLIN)
        watched.register(keeper, 0)  # that it hangs up is always told
        with socket.socket(fileno=found) as listener:
            while all(one == found for one, _ in watched.poll()):
                borrower, _ = listener.accept()
                threading.Thread(target=hmm.lend, args=[borrower], daemon=True).start()
