"""Whether a checkpoint is still what it was when it was loaded.

A file that has the inode, size and times that it had is the same file: the system sets the time of
the last change (ctime), which nobody can choose. Of any other one the SHA-256 says whether what is
in it is the same, so that a copy elsewhere is as good, and a file that was written over is not.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from placer.errors import PlacerError


@dataclass(frozen=True, slots=True)
class File:
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str = ""


def stamps(paths: Iterable[Path]) -> dict[str, File]:
    """By name, without reading them."""
    return {path.name: _stamp(path) for path in sorted(paths)}


def _stamp(path: Path) -> File:
    found = os.stat(path)
    return File(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def digested(paths: Iterable[Path], before: Mapping[str, File]) -> dict[str, File]:
    """With their contents. before: their stamps when they began to be loaded. Raises PlacerError
    if they changed since."""
    every = sorted(paths)
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(_sha256, every))
    after = stamps(every)
    for path in every:
        if after[path.name] != before.get(path.name):
            raise PlacerError(f"{path} changes while it is loaded: start again when it is complete")
    return {
        path.name: replace(after[path.name], sha256=digest)
        for path, digest in zip(every, digests, strict=True)
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def change(paths: Iterable[Path], loaded: Mapping[str, File]) -> str:
    """What is not as it was, in words; empty if all is."""
    every = {path.name: path for path in paths}
    if every.keys() != loaded.keys():
        return f"has the files {', '.join(sorted(every))}, and had {', '.join(sorted(loaded))}"
    for name, path in sorted(every.items()):
        was, stamp = loaded[name], _stamp(path)
        if replace(stamp, sha256=was.sha256) == was:
            continue
        if stamp.size != was.size:
            return f"has {stamp.size} bytes in {name}, and had {was.size}"
        if (digest := _sha256(path)) != was.sha256:
            return f"has SHA-256 {digest[:12]} in {name}, and had {was.sha256[:12]}"
    return ""
