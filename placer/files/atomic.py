"""Files are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from placer.errors import FileError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that becomes ``path`` when all went well."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror}: choose another place or free some space"
        ) from error


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


def read_text(path: Path, limit: int) -> str:
    """The whole file as UTF-8, if it is no larger than ``limit`` bytes."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise FileError(f"{path} has {size} bytes, the limit is {limit}: is it the right file?")
        return path.read_bytes().decode()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}: check the path") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not text: is it the right file?") from error
