"""Files that others replace while all runs: certificates, keys and tokens."""

import threading
from collections.abc import Callable, Sequence
from logging import Logger
from pathlib import Path
from typing import Generic, TypeVar

from placer.errors import PlacerError

T = TypeVar("T")


class Fresh(Generic[T]):
    """What was read from files, read again when one of them changes. Broken ones change nothing."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T], log: Logger) -> None:
        self._paths, self._read, self._log = paths, read, log
        self._guard = threading.Lock()  # gRPC asks from threads of its own
        self._stamps = self._stamp()
        self._value = read()

    def get(self) -> T:
        with self._guard:
            stamps = self._stamp()
            if stamps != self._stamps:
                self._stamps = stamps  # before reading: what changes meanwhile is read next time
                try:
                    self._value = self._read()
                    self._log.info("read %s again", ", ".join(map(str, self._paths)))
                except PlacerError as error:
                    self._log.warning("%s; going on with what stood there before", error)
            return self._value

    def _stamp(self) -> list[tuple[int, ...]]:
        return [stamp(path) for path in self._paths]


def stamp(path: Path) -> tuple[int, ...]:
    """The file's mode, and what is another one once it is replaced; empty if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mode, found.st_mtime_ns, found.st_size, found.st_ino
