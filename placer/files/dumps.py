"""What SGLang's expert distribution recorder dumps: ``logical_count`` [steps, layers, experts] or
[layers, experts], as JSON or as ``torch.save`` wrote it.

PyTorch's file is an archive of a pickle, which says what the arrays are, and of their bytes. Of the
pickle only those few words are understood, each as a stand-in that holds its arguments; no code of
the file's choice ever runs, and PyTorch is not needed.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from placer.errors import FileError
from placer.files.atomic import open_file, read_text
from placer.files.documents import of_json

KEY = "logical_count"
JSON_LIMIT = 256 * 2**20
PICKLE_LIMIT = 2**20
STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
}  # fmt: skip


def logical_count(path: Path) -> npt.NDArray[Any] | None:
    """The counts of a dump; None if the file is something else. Raises FileError for a dump that
    does not hold them."""
    try:
        with open_file(path) as file:
            first = file.read(64).lstrip()[:1]
            if first == b"{":
                data = _document(path)
                return _numbers(path, data[KEY]) if isinstance(data, dict) and KEY in data else None
            if first == b"P" and zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    names = archive.namelist()
                    pickles = [name for name in names if name.endswith("/data.pkl")]
                    return _saved(path, archive, pickles[0]) if pickles else None
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None  # whoever reads it as what it is says what is wrong
    return None


def _document(path: Path) -> Any:
    try:
        return of_json(read_text(path, JSON_LIMIT), str(path))
    except FileError:
        return None  # as above


def _numbers(path: Path, values: Any) -> npt.NDArray[Any]:
    try:
        found = np.array(values)
    except (ValueError, OverflowError) as error:
        raise _wrong(path, f"{KEY} is no array ({error})") from error
    if found.dtype.kind not in "iuf":
        raise _wrong(path, f"{KEY} does not hold numbers alone")
    return found


def _wrong(path: Path, what: str) -> FileError:
    return FileError(f"{path}: {what}: dump it again, in the recorder's mode stat")


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    name: str
    length: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: Any
    offset: Any
    shape: Any
    stride: Any


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, stride)


class _Words(pickle._Unpickler):  # C's takes memory as told
    """Knows tensors, and what every pickle has."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}".splitlines()[0][:80])

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, name, _, length = pid
        if kind != "storage" or not isinstance(name, str) or type(length) is not int:
            raise pickle.UnpicklingError("it refers to something else than an array")
        if storage not in STORAGES:
            raise pickle.UnpicklingError(f"it holds a {storage}")
        return _Storage(STORAGES[storage], name, length)


def _saved(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """logical_count of an archive that ``torch.save`` wrote, whose pickle is ``name``."""
    folder = name.removesuffix("data.pkl")
    try:
        data = _Words(_stored(archive, name, PICKLE_LIMIT)).load()
        if not isinstance(data, dict) or KEY not in data:
            keys = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise _wrong(path, f"no {KEY} in it (it has {keys:.80})")
        found = data[KEY]
        if not isinstance(found, _Tensor):
            return _numbers(path, found)
        order = "<"
        if f"{folder}byteorder" in archive.namelist():
            order = {b"little": "<", b"big": ">"}[_stored(archive, f"{folder}byteorder", 9).read()]
        return _array(archive, f"{folder}data/", found, order)
    except FileError:
        raise
    except Exception as error:  # a pickle may fail in every way
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise _wrong(path, f"it is not what the recorder saves ({why})") from error


def _stored(archive: zipfile.ZipFile, name: str, limit: int) -> IO[bytes]:
    """A file of the archive. PyTorch packs nothing, so none is larger than the archive."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
        raise ValueError(f"{name} is packed, or has more than {limit} bytes")
    return archive.open(info)


def _array(archive: zipfile.ZipFile, folder: str, what: _Tensor, order: str) -> npt.NDArray[Any]:
    storage, offset, shape, stride = what.storage, what.offset, what.shape, what.stride
    sizes = [offset, *shape, *stride]
    if len(shape) != len(stride) or not all(type(n) is int and 0 <= n < 2**48 for n in sizes):
        raise ValueError("a tensor of impossible sizes")
    dtype = np.dtype(order + storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 in shape or last >= storage.length or math.prod(shape) > storage.length:
        raise ValueError(f"{KEY} is {list(shape)} of {storage.length} numbers")
    size = storage.length * dtype.itemsize
    with _stored(archive, folder + storage.name, size) as file:
        data = np.frombuffer(file.read(), dtype)
    if len(data) != storage.length:
        raise ValueError(f"{KEY} is cut short")
    strides = [step * dtype.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(data[offset:], shape, strides, writeable=False).copy()
