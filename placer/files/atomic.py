"""Files are written whole or not at all, and read only where they are files."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO

from placer.errors import FileError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that becomes ``path`` when all went well.

    Of a symlink it becomes the file behind. What is there and no regular file (a pipe, a device)
    is written to and stays what it is.
    """
    check_target(path)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with path.open("wb") as there:
                yield there
            return
        target = Path(os.path.realpath(path))
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def check_target(path: Path) -> None:
    """Raises FileError if nothing can be written at ``path``, whatever it would be."""
    if os.path.isdir(path):  # "." and the empty name, too
        raise _unwritable(path, "it is a folder")
    if os.path.islink(os.path.realpath(path)):
        raise _unwritable(path, "it is a link to itself")
    if not (os.path.exists(path) or os.path.isdir(os.path.dirname(os.path.realpath(path)))):
        raise _unwritable(path, "No such file or directory")


def _unwritable(path: Path, why: str | None) -> FileError:
    return FileError(f"cannot write {path}: {why}: choose another place or free some space")


def make_folder(path: Path) -> None:
    """With those that it is in; it may be there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot make the folder {path}: {error.strerror}: choose another place"
        ) from error


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def open_file(path: Path) -> BufferedReader:
    """To read. Only a regular file: of others a read may wait, or never end."""
    try:
        found = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise FileError(f"cannot read {path}: it is no regular file: check the path")
    return os.fdopen(found, "rb")


def read_text(path: Path, limit: int) -> str:
    """The whole file as UTF-8, if it is no larger than ``limit`` bytes."""
    try:
        with open_file(path) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > limit:
        raise FileError(f"{path} has more than {limit} bytes, the limit: is it the right file?")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not text: is it the right file?") from error


def sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, error: OSError | ValueError) -> FileError:
    why = getattr(error, "strerror", None) or error
    return FileError(f"cannot read {path}: {why}: check the path")
