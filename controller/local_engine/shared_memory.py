"""What ranks share: files in memory that outlive any of them.

A folder of plain files, mapped by whoever needs them. It belongs to the engine, which holds a lock
on it that the kernel lets go with the process: a folder without one is a dead engine's, and the
next engine removes it.
"""

import fcntl
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from controller.local_engine.weights import Dense, Float32, Sizes
from placer.arrays import IntArray

PREFIX = "placer-engine-"
CHUNK = 16  # prompt tokens that a rank computes in a step, at most
SEATS = 16  # requests that a rank serves at once: its KV cache has room for one in each
TOKENS = CHUNK + SEATS  # of a rank in a step, at most
ITEM = 4  # bytes: all is float32 or int32


@dataclass(frozen=True, slots=True)
class Layout:
    """How much of everything there is. ``pages``: of experts, a rank and layer

    dense-*: weights that all ranks have
    pages:   [ranks, layers, pages, page] of experts; a rank writes its own only
    cache:   [ranks, layers, SEATS, 2, kv_heads, context, head_dim] keys and values
    states:  [ranks, TOKENS, hidden] what a rank's tokens bring to this layer's experts
    slots:   [ranks, TOKENS, top_k] where they go: physical experts, EMPTY for none
    outputs: [ranks, TOKENS, top_k, hidden] what came of it, written by the slots' ranks
    """

    sizes: Sizes
    ranks: int
    pages: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        sizes, ranks = self.sizes, self.ranks
        kept = (SEATS, 2, sizes.kv_heads, sizes.context, sizes.head_dim)
        return {f"dense-{name}": shape for name, shape in sizes.dense.items()} | {
            "pages": (ranks, sizes.layers, self.pages, sizes.page),
            "cache": (ranks, sizes.layers, *kept),
            "states": (ranks, TOKENS, sizes.hidden),
            "slots": (ranks, TOKENS, sizes.top_k),
            "outputs": (ranks, TOKENS, sizes.top_k, sizes.hidden),
        }

    @property
    def bytes(self) -> int:
        return sum(map(math.prod, self.shapes.values())) * ITEM


class Memory:
    """The arrays of a layout in ``folder``, made if they are not there."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._shapes = folder, layout.shapes
        self.dense: Dense = {name: self._floats(f"dense-{name}") for name in layout.sizes.dense}
        self.pages, self.cache = self._floats("pages"), self._floats("cache")
        self.states, self.outputs = self._floats("states"), self._floats("outputs")
        self.slots: IntArray = self._open("slots", np.int32)

    def _floats(self, name: str) -> Float32:
        return self._open(name, np.float32)

    def _open(self, name: str, dtype: type[np.generic]) -> Any:
        path = self._folder / name
        mode: Literal["r+", "w+"] = "r+" if path.exists() else "w+"
        mapped = np.memmap(path, dtype, mode=mode, shape=self._shapes[name])
        return np.asarray(mapped)  # a plain array: memmap's own indexing is slow


class Folder:
    """Room for a layout, for as long as this process lives at most."""

    def __init__(self, layout: Layout) -> None:
        shared, fallback = Path("/dev/shm"), Path(tempfile.gettempdir())
        for stale in (*shared.glob(f"{PREFIX}*"), *fallback.glob(f"{PREFIX}*")):
            _remove_if_free(stale)
        # Containers often have next to none, and writing beyond it ends a process.
        parent = shared if _room(shared) > layout.bytes else fallback
        # Locked before it has the name that others look for.
        made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
        self._lock: int | None = os.open(made, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = made.rename(parent / f"{PREFIX}{os.getpid()}-{made.name[-8:]}")

    def close(self) -> None:
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None


def _room(folder: Path) -> int:
    """Free bytes, none if this process may not write there."""
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0


def _remove_if_free(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
