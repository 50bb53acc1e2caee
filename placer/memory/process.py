"""A process that answers messages, one after another."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from placer.memory.messages import receive_with, send

PATIENCE_S = 30.0  # one that does not answer for so long is taken for dead
ROOT = Path(__file__).parents[2]
NEVER = Event()  # for a clock to wait for, by whom nobody can wake


class GoneError(Exception):
    """A process that went away before it answered."""


class Process:
    """One of this process's children, which runs ``main(descriptor)`` of a module. It ends when
    nobody holds the other end of its socket."""

    def __init__(self, module: str, name: str) -> None:
        self.name = name
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        # One thread each: they share the cores. Signals of the terminal are the parent's to take.
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import main; main({theirs.fileno()})", name],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def say(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Raises GoneError."""
        try:
            send(self.socket, message, descriptors)
        except OSError as error:
            raise self._gone() from error

    def hear(self) -> tuple[Any, list[int]]:
        """The answer to what was said last. Raises GoneError, or what the other side raised."""
        try:
            answer, descriptors = receive_with(self.socket)
        except (OSError, EOFError) as error:
            raise self._gone() from error
        if isinstance(answer, Exception):
            raise answer
        return answer, descriptors

    def ask(self, message: object, descriptors: Sequence[int] = ()) -> Any:
        self.say(message, descriptors)
        return self.hear()[0]

    def end(self, grace_s: float = 0.0) -> None:
        """Hang up, on which it ends by itself; kill it after ``grace_s``."""
        self.socket.close()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _gone(self) -> GoneError:
        self.end()  # or it is merely silent
        return GoneError(f"{self.name} went away")


def answer(
    descriptor: int, reply: Callable[[Any, list[int]], tuple[object, Sequence[int]]]
) -> None:
    """What such a process does, until its parent is gone. Errors of placer are answers, too."""
    from placer.errors import PlacerError

    with socket.socket(fileno=descriptor) as parent:
        while True:
            try:
                message, descriptors = receive_with(parent)
            except (OSError, EOFError):
                return
            told: object
            try:
                told, sent = reply(message, descriptors)
            except PlacerError as error:
                told, sent = error, ()
            try:
                send(parent, told, sent)
            except OSError:
                return
            finally:
                for one in descriptors:
                    os.close(one)
