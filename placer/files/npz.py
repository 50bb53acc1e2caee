"""Reading .npz files that anybody may have made, and writing placer's own.

An array's type and size are taken from its header and held against the archive's directory, and
against what the archive can really hold, before any of its data is read; nothing is ever unpickled.
"""

import json
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from placer.errors import FileError
from placer.files.atomic import open_file
from placer.files.documents import of_json

MAX_ARRAY_BYTES = 8 * 2**30
# Deflated zeros take a thousandth of their size, and recordings a third: beyond what any computer
# can take, an array may only be as large as a recording of its compressed size would be.
FREE_CELLS = 2**25
CELLS_PER_BYTE = 100
TEXT_BYTES = 4 * 2**20
Layout = tuple[tuple[int, ...], bool, np.dtype[Any]]  # shape, whether in Fortran order, type


class Npz:
    """An open archive. ``names`` are its arrays."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path = path
        self._archive, self._size = archive, size
        self.names = {n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")}

    def shape(self, name: str, *axes: str) -> tuple[int, ...]:
        """The array's shape, if it has as many axes as one of ``axes`` names."""
        with self._open(name) as (_, (shape, _, _)):
            if len(shape) not in {len(names.split(", ")) for names in axes}:
                either = " or ".join(f"[{names}]" for names in axes)
                raise FileError(f"{self.path}: {name} is {list(shape)}: it must be {either}")
            return shape

    def array(self, name: str) -> npt.NDArray[Any]:
        """The whole array, of numbers."""
        with self._open(name) as (file, layout):
            if layout[2].kind not in "biuf":
                raise FileError(f"{self.path}: {name} is {layout[2]}: it must be numbers")
            return self._read(file, layout, name)

    def text(self, name: str) -> str:
        """An array that holds one string."""
        with self._open(name) as (file, layout):
            shape, _, dtype = layout
            if dtype.kind != "U" or shape or dtype.itemsize > TEXT_BYTES:
                raise FileError(
                    f"{self.path}: {name} is not a string of at most {TEXT_BYTES // 4} characters"
                    ": write it again with placer"
                )
            return str(self._read(file, layout, name)[()])

    def meta(self, kind: str, newest: int) -> dict[str, Any]:
        """The file's own description, if it is of this kind and of a version known here; empty if
        it has none."""
        if "meta" not in self.names:
            return {}
        meta = of_json(self.text("meta"), f"{self.path}: meta")
        if not isinstance(meta, dict):
            raise FileError(f"{self.path}: meta is not a JSON object: write it again")
        if meta.get("format", kind) != kind:
            raise FileError(
                f"{self.path} is a {meta['format']}, not a {kind}: is it the right file?"
            )
        version = meta.get("version", newest)
        if version not in range(1, newest + 1):
            raise FileError(
                f"{self.path} has version {version!r} of {kind}, this placer reads {newest}"
                ": upgrade placer"
            )
        return meta

    @contextmanager
    def rows(self, name: str, counts: Sequence[int]) -> Iterator[Iterator[npt.NDArray[Any]]]:
        """Consecutive pieces of the array along its first axis, of ``counts`` rows each."""
        with self._open(name) as (file, (shape, fortran, dtype)):
            if fortran and len(shape) > 1:  # its rows do not follow each other
                whole = self._read(file, (shape, fortran, dtype), name)
                ends = list(accumulate(counts))
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
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise FileError(
                f"{self.path}: {name} is packed in a way that NumPy does not"
                ": save it with np.savez_compressed"
            )
        with self._archive.open(info) as file:
            shape, fortran, dtype = _header(file)
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
            held = min(info.compress_size, self._size)
            if math.prod(shape) > max(FREE_CELLS, CELLS_PER_BYTE * held):
                raise FileError(
                    f"{self.path}: {name} is {list(shape)} in {held} bytes"
                    ": no recording is so uniform, check what wrote it"
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


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, type. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"npy version {version}")
    try:
        with warnings.catch_warnings(action="ignore"):
            found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read(file)
    except Exception as error:  # of Python's tokenizer, its parser, and whatever reads the zip
        raise ValueError(f"an array's header: {error}") from error
    if min(found[0], default=0) < 0:
        raise ValueError(f"an array of shape {found[0]}")
    return found


@contextmanager
def opened(path: Path) -> Iterator[Npz]:
    """The archive at ``path``. Whatever is wrong with it is raised as FileError."""
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            yield Npz(path, archive, file.seek(0, os.SEEK_END))
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


def save(file: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """``meta`` is the file's own description."""
    np.savez_compressed(file, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)
