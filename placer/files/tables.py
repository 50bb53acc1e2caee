"""Table files (.npz): what a scheduler looks up, and what it is for; docs/files.md describes them.

They hold what many requests had in common, never a sequence: no request's tokens, and no context
of fewer than two requests.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placer.errors import FileError, PlacerError
from placer.files.atomic import replacing
from placer.files.npz import Npz, opened, save
from placer.placement import Placement
from placer.tables.devices import DeviceTables
from placer.tables.experts import ExpertTables
from placer.tables.factors import WIDTH, Factors, thinned
from placer.tables.made import BY_IDS, BY_SETS, Origin, Tables
from placer.tables.vocabulary import Vocabulary

KIND, VERSION = "placer.tables", 1
CONTEXTS = ("contexts_2", "contexts_3", "contexts_4")
Array = npt.NDArray[Any]


def tables_bytes(tables: Tables) -> bytes:
    """What a table file holds."""
    devices, experts, placement = tables.devices, tables.experts, tables.placement
    arrays = {
        "placement": placement.physical_to_logical,
        "tokens": devices.vocabulary.tokens,
        "row": devices.vocabulary.row,
        "near": devices.near.astype(np.float16),
        "owning": tables.owning.astype(np.float16),
        "weights": tables.used.weights,
        "basis": tables.used.basis.astype(np.float32),
        "device": devices.device,
        "confidence": devices.confidence,
        "next_device": devices.next_device,
        "next_confidence": devices.next_confidence,
        "experts": experts.experts,
        "likely": experts.likely,
        "following": tables.following,
        **dict(zip(CONTEXTS, experts.keys, strict=True)),
    }
    sizes = {name: getattr(placement, name) for name in ("experts", "gpus", "nodes")}
    meta = {"format": KIND, "version": VERSION, **asdict(tables.origin)}
    meta |= {"placement": sizes, "further": tables.used.further}
    file = BytesIO()
    save(file, arrays, meta)
    return file.getvalue()


def write_tables(path: Path, tables: Tables) -> None:
    """Raises FileError if the file cannot be written; nothing is left half-written."""
    content = tables_bytes(tables)
    with replacing(path) as file:
        file.write(content)


def read_tables(path: Path) -> Tables:
    """The tables at ``path``, whoever wrote them. Raises FileError if they contradict themselves,
    or the digest of their own placement."""
    with opened(path) as npz:
        if "meta" not in npz.names:
            raise FileError(f"{path} is no table file (it has no meta): placer tables writes them")
        meta = npz.meta(KIND, VERSION)
        placement = _placement(npz, meta)
        origin = _origin(path, meta)
        if origin.plan != placement.digest:
            raise FileError(
                f"{path}: it is for plan {origin.plan:.19}... but its placement is "
                f"{placement.digest:.19}...: the file was changed, make the tables again"
            )
        return _checked(npz, origin, placement, _further(path, meta))


def _checked(npz: Npz, origin: Origin, placement: Placement, further: float) -> Tables:
    layers, experts, gpus = placement.layers, placement.experts, placement.gpus
    rows, near_gpus = npz.shape("near", "rows, gpus")
    _, all_rows, top_k = npz.shape("experts", "layers, rows, top_k")
    (known,) = npz.shape("tokens", "tokens")
    take = _Taker(npz)
    take.must(origin.dims == f"{layers} layers x {experts} experts, top-{top_k}", "experts")
    take.must(near_gpus == gpus and rows > 0 and known > 0, "near")
    pairs = (layers, gpus, gpus)
    keys = tuple(take.ascending(name, np.uint64) for name in CONTEXTS)
    take.must(all_rows == rows + sum(map(len, keys)), "experts")
    vocabulary = Vocabulary(
        take.ascending("tokens", np.int64), take.below("row", (known,), rows).astype(np.int64)
    )
    devices = DeviceTables(
        vocabulary,
        take.share("near", (rows, gpus)).astype(np.float32),
        take.below("device", (layers, rows), gpus),
        take.below("confidence", (layers, rows), 256).astype(np.uint8, copy=False),
        take.below("next_device", pairs, gpus),
        take.below("next_confidence", pairs, 256).astype(np.uint8, copy=False),
    )
    owning = take.share("owning", (rows, gpus)).astype(np.float32)
    used = take.factors(rows, layers, experts)._replace(further=further)
    likely = take.below("likely", (layers, all_rows), top_k + 1).astype(np.uint8, copy=False)
    chosen = take.below("experts", (layers, all_rows, top_k), experts)
    following = take.logs("following", (layers - 1, experts, experts))
    longest = ExpertTables(vocabulary, keys, chosen, likely)
    return Tables(origin, placement, devices, owning, used, longest, following)


class _Taker:
    """Arrays of a file that are what they should be."""

    def __init__(self, npz: Npz) -> None:
        self._npz = npz

    def must(self, is_so: bool, name: str) -> None:
        if not is_so:
            raise FileError(
                f"{self._npz.path}: {name} does not fit the rest of the file: it was cut short or "
                "changed, make the tables again"
            )

    def below(self, name: str, shape: tuple[int, ...], end: int) -> Array:
        """Whole numbers from 0 up to ``end``, which is not among them."""
        found = self._numbers(name, shape, "iu")
        self.must(not found.size or (found.min() >= 0 and found.max() < end), name)
        return found

    def share(self, name: str, shape: tuple[int, ...]) -> Array:
        """Numbers from 0 to 1."""
        found = self._numbers(name, shape, "f")
        self.must(bool(((found >= 0) & (found <= 1)).all()), name)  # nor is NaN
        return found

    def factors(self, rows: int, layers: int, experts: int) -> Factors:
        kept = len(thinned(layers, experts))
        width = min(WIDTH, kept * experts)
        weights = self._numbers("weights", (rows, width), "i").astype(np.int16, copy=False)
        basis = self._numbers("basis", (width, kept * experts), "f").astype(np.float64)
        self.must(bool(np.isfinite(basis).all()), "basis")
        return Factors(weights, basis, layers / kept)

    def logs(self, name: str, shape: tuple[int, ...]) -> Array:
        """Numbers of two bytes that are finite."""
        found = self._numbers(name, shape, "f")
        self.must(found.dtype == np.float16 and bool(np.isfinite(found).all()), name)
        return found

    def ascending(self, name: str, dtype: type[np.integer[Any]]) -> Array:
        found = self._npz.array(name)
        self.must(found.ndim == 1 and found.dtype == dtype, name)
        self.must(bool((found[1:] > found[:-1]).all()), name)
        return found

    def _numbers(self, name: str, shape: tuple[int, ...], kinds: str) -> Array:
        found = self._npz.array(name)
        self.must(found.shape == shape and found.dtype.kind in kinds, name)
        return found


def _placement(npz: Npz, meta: dict[str, Any]) -> Placement:
    sizes = _of(npz.path, meta, "placement", lambda value: isinstance(value, dict))
    experts, gpus, nodes = (
        _of(npz.path, sizes, name, _is_count) for name in ("experts", "gpus", "nodes")
    )
    try:
        return Placement(npz.array("placement"), experts, gpus, nodes)
    except PlacerError as error:
        raise FileError(f"{npz.path}: its placement: {error}") from error


def _origin(path: Path, meta: dict[str, Any]) -> Origin:
    is_right: dict[Any, Callable[[Any], bool]] = {str: lambda value: isinstance(value, str)}
    found = {
        field.name: _of(path, meta, field.name, is_right.get(field.type, _is_count))
        for field in fields(Origin)
    }
    origin = Origin(**found)
    if origin.keyed_by not in (BY_IDS, BY_SETS):
        raise FileError(
            f"{path}: meta has keyed_by {origin.keyed_by!r:.40}: it must be {BY_IDS!r} or "
            f"{BY_SETS!r}"
        )
    return origin


def _further(path: Path, meta: dict[str, Any]) -> float:
    """1 in files of before it was measured."""
    return float(_of(path, {"further": 1.0, **meta}, "further", _is_slope))


def _is_slope(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _of(path: Path, values: dict[str, Any], name: str, is_right: Callable[[Any], bool]) -> Any:
    value = values.get(name)
    if not is_right(value):
        raise FileError(f"{path}: meta has {name} {value!r:.40}: make the tables again")
    return value
