"""Reading .npz files that anybody may have made.

An array's type and size are taken from its header and held against the archive's directory before
any of its data is read; nothing is ever unpickled.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from placer.errors import FileError

MAX_ARRAY_BYTES = 8 * 2**30
Layout = tuple[tuple[int, ...], bool, np.dtype[Any]]  # shape, whether in Fortran order, type


class Npz:
    """An open archive. ``names`` are its arrays."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self.names = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}

    def shape(self, name: str, *axes: str) -> tuple[int, ...]:
        """The array's shape, if it has as many axes as one of ``axes`` names."""
        with self._open(name) as (_, (shape, _, _)):
            if len(shape) not in {len(names.split(", ")) for names in axes}:
                either = " or ".join(f"[{names}]" for names in axes)
                raise FileError(f"{self.path}: {name} is {list(shape)}: it must be {either}")
            return shape

    def array(self, name: str) -> npt.NDArray[Any]:
        """The whole array."""
        with self._open(name) as (file, layout):
            return self._read(file, layout, name)

    def text(self, name: str) -> str:
        """An array that holds one string."""
        array = self.array(name)
        if array.dtype.kind == "U" and array.ndim == 0:
            return str(array[()])
        raise FileError(f"{self.path}: {name} is not a string: write it again with placer")

    @contextmanager
    def rows(self, name: str, counts: Sequence[int]) -> Iterator[Iterator[npt.NDArray[Any]]]:
        """Consecutive pieces of the array along its first axis, of ``counts`` rows each."""
        with self._open(name) as (file, (shape, fortran, dtype)):
            if fortran and len(shape) > 1:  # its rows do not follow each other
                whole, ends = (
                    self._read(file, (shape, fortran, dtype), name),
                    list(accumulate(counts)),
                )
                yield (whole[end - count : end] for end, count in zip(ends, counts, strict=True))
                return
            yield (
                self._read(file, ((count, *shape[1:]), fortran, dtype), name) for count in counts
            )

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], Layout]]:
        if name not in self.names:
            raise FileError(
                f"{self.path} has no array {name!r} (it has {', '.join(sorted(self.names))})"
                ": is it the right file?"
            )
        info = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read is None:
                raise FileError(f"{self.path}: {name} has npy version {version}: save it again")
            shape, fortran, dtype = read(file)
            if dtype.hasobject:
                raise FileError(
                    f"{self.path}: {name} holds pickled objects, which are never loaded"
                    ": save plain arrays"
                )
            size = math.prod(shape) * dtype.itemsize
            if size > MAX_ARRAY_BYTES:
                raise FileError(
                    f"{self.path}: {name} has {size} bytes, the limit is {MAX_ARRAY_BYTES}"
                    ": split the recording into several files"
                )
            if size != info.file_size - file.tell():
                raise FileError(
                    f"{self.path}: {name} should have {size} bytes of data and has "
                    f"{info.file_size - file.tell()}: the file is damaged, record it again"
                )
            yield file, (shape, fortran, dtype)

    def _read(self, file: IO[bytes], layout: Layout, name: str) -> npt.NDArray[Any]:
        shape, fortran, dtype = layout
        size = math.prod(shape) * dtype.itemsize
        data = file.read(size)
        if len(data) != size:
            raise FileError(f"{self.path}: {name} ends early: the file is cut short, copy it again")
        return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


@contextmanager
def opened(path: Path) -> Iterator[Npz]:
    """The archive at ``path``. Whatever is wrong with it is raised as FileError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield Npz(path, archive)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}: check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise FileError(
            f"{path} is not a whole .npz file ({error}): copy or record it again"
        ) from error
    except (ValueError, TypeError, SyntaxError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileError(
            f"{path} is not a .npz file placer can read ({reason})"
            ": save it with np.savez_compressed"
        ) from error
