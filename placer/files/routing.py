"""Trace and profile files (.npz); docs/files.md describes them.

A trace has ``expert_ids`` [tokens, layers, top_k] and ``seq_lens`` [sequences], and may have
``token_ids``, ``gates`` and ``meta``, a JSON object. A profile has ``load`` and ``meta``, and may
have ``transitions`` and ``coactivation``.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray
from placer.errors import FileError
from placer.files.atomic import open_file, replacing
from placer.files.documents import of_json
from placer.files.npz import Npz, opened
from placer.model import ModelShape
from placer.pace import of_meta
from placer.profile import Profile, Spread
from placer.trace import Trace, check_lengths

VERSIONS = {"placer.trace": 1, "placer.profile": 2}
TOKENS_AT_A_TIME = 65_536


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its data is read. ``experts`` is None where only ids can tell;
    ``outdated`` is a profile whose transitions mean something else (``_is_outdated``)."""

    path: Path
    kind: Literal["trace", "profile"]
    layers: int
    top_k: int
    experts: int | None
    tokens: float
    meta: Mapping[str, Any]
    outdated: bool = False


def read_header(path: Path) -> Header:
    """Whether ``path`` is a trace or a profile, and of what."""
    with opened(path) as npz:
        if "expert_ids" in npz.names:
            shape = npz.shape("expert_ids", "tokens, layers, top_k")
            meta = _meta(npz, "placer.trace")
            return Header(path, "trace", shape[1], shape[2], None, shape[0], meta)
        if "load" in npz.names:
            layers, experts = npz.shape("load", "layers, experts")
            meta = _meta(npz, "placer.profile")
            top_k = _number(npz, meta, "top_k")
            tokens = _number(npz, meta, "tokens")
            outdated = _is_outdated(npz, meta)
            return Header(path, "profile", layers, int(top_k), experts, tokens, meta, outdated)
        raise FileError(
            f"{path} is neither a trace (no expert_ids) nor a profile (no load)"
            f": it has {', '.join(sorted(npz.names)) or 'no arrays'}"
        )


def read_trace(path: Path, experts: int) -> Trace:
    """A whole trace of a model with that many experts."""
    with opened(path) as npz:
        arrays = {name: npz.array(name) for name in _columns(npz)}
        return Trace(
            expert_ids=arrays.pop("expert_ids"),
            seq_lens=npz.array("seq_lens"),
            experts=experts,
            meta=_meta(npz, "placer.trace"),
            **arrays,
        )


def read_chunks(path: Path, experts: int) -> Iterator[Trace]:
    """The same trace piece by piece, whole sequences together, for files larger than memory."""
    with opened(path) as npz:
        meta = _meta(npz, "placer.trace")
        for lens, arrays in _pieces(npz):
            yield Trace(seq_lens=lens, experts=experts, meta=meta, **arrays)


def highest_expert(path: Path) -> int:
    """The largest expert id in a trace, for recordings that do not name their model."""
    highest = -1
    with opened(path) as npz:
        for _, arrays in _pieces(npz):
            ids = arrays["expert_ids"]
            if ids.size and ids.dtype.kind in "iu":  # reading it as a Trace says what is wrong
                highest = max(highest, int(ids.max()))
    return highest


def write_trace(path: Path, trace: Trace, model: ModelShape | None = None) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "expert_ids": trace.expert_ids.astype(np.min_scalar_type(trace.experts - 1)),
        "seq_lens": trace.seq_lens.astype(np.int32),
    }
    if trace.token_ids is not None:
        arrays["token_ids"] = _smallest(trace.token_ids)
    if trace.gates is not None:
        arrays["gates"] = trace.gates.astype(np.float16)
    meta = {**trace.meta, "format": "placer.trace", "version": VERSIONS["placer.trace"]}
    if model is not None:
        meta["model"] = asdict(model)
    _write(path, arrays, meta)


def read_profile(path: Path) -> Profile:
    """A profile, without its transitions if it is outdated."""
    with opened(path) as npz:
        meta = _meta(npz, "placer.profile")
        window = meta.get("window_s")
        return Profile(
            load=_counts(npz, "load"),
            top_k=int(_number(npz, meta, "top_k")),
            tokens=_number(npz, meta, "tokens"),
            sequences=int(_number(npz, meta, "sequences")),
            transitions=None if _is_outdated(npz, meta) else _counts_if_any(npz, "transitions"),
            coactivation=_counts_if_any(npz, "coactivation"),
            phase=str(meta.get("phase", "mixed")),
            window_s=None if window is None else _number(npz, meta, "window_s"),
            spread=_spread(npz, meta),
            pace=of_meta(meta),
        )


def write_profile(path: Path, profile: Profile, model: ModelShape | None = None) -> None:
    names = ("load", "transitions", "coactivation")
    arrays = {n: _smallest(a) for n in names if (a := getattr(profile, n)) is not None}
    meta = {n: getattr(profile, n) for n in ("top_k", "tokens", "sequences", "phase", "window_s")}
    if (spread := profile.spread) is not None:
        arrays |= {
            "spread_products": _smallest(spread.products),
            "spread_lengths": _smallest(spread.lengths),
        }
        meta |= {"spread_squares": spread.squares, "spread_blocks": spread.blocks}
    if profile.pace is not None:
        meta["pace"] = asdict(profile.pace)
    if model is not None:
        meta["model"] = asdict(model)
    named = {"format": "placer.profile", "version": VERSIONS["placer.profile"]}
    _write(path, arrays, {**meta, **named})


def sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _columns(npz: Npz) -> list[str]:
    return ["expert_ids", *sorted({"token_ids", "gates"} & npz.names)]


def _pieces(npz: Npz) -> Iterator[tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]]:
    """(seq_lens, arrays by name) of consecutive groups of sequences."""
    lens = npz.array("seq_lens")
    tokens = npz.shape("expert_ids", "tokens, layers, top_k")[0]
    check_lengths(lens, tokens)
    ends = np.cumsum(lens)
    group = (ends - 1) // TOKENS_AT_A_TIME
    groups = np.split(lens, np.nonzero(np.diff(group))[0] + 1)
    sizes = [int(part.sum()) for part in groups]
    with ExitStack() as stack:
        columns = {name: stack.enter_context(npz.rows(name, sizes)) for name in _columns(npz)}
        for part in groups:
            yield part, {name: next(rows) for name, rows in columns.items()}


def _meta(npz: Npz, kind: str) -> dict[str, Any]:
    """The file's own description, if it is of this kind and of a version known here."""
    if "meta" not in npz.names:
        return {}
    meta = of_json(npz.text("meta"), f"{npz.path}: meta")
    if not isinstance(meta, dict):
        raise FileError(f"{npz.path}: meta is not a JSON object: write it again")
    if meta.get("format", kind) != kind:
        raise FileError(f"{npz.path} is a {meta['format']}, not a {kind}: is it the right file?")
    version = meta.get("version", VERSIONS[kind])
    if version not in range(1, VERSIONS[kind] + 1):
        raise FileError(
            f"{npz.path} has version {version!r} of {kind}, this placer reads {VERSIONS[kind]}"
            ": upgrade placer"
        )
    return meta


def _number(npz: Npz, meta: Mapping[str, Any], name: str) -> float:
    value = meta.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise FileError(f"{npz.path}: meta has {name} {value!r}: it must be a number, 0 or more")
    return value


def _is_outdated(npz: Npz, meta: Mapping[str, Any]) -> bool:
    """Whether transitions are those of a token's first expert alone, as version 1 counted them: of
    top-1 models they are the same."""
    old = meta.get("version") == 1 and _number(npz, meta, "top_k") > 1
    return old and "transitions" in npz.names


def _spread(npz: Npz, meta: Mapping[str, Any]) -> Spread | None:
    if "spread_products" not in npz.names:
        return None
    return Spread(
        products=_counts(npz, "spread_products"),
        lengths=_counts(npz, "spread_lengths"),
        squares=_number(npz, meta, "spread_squares"),
        blocks=int(_number(npz, meta, "spread_blocks")),
    )


def _counts(npz: Npz, name: str) -> FloatArray:
    array = npz.array(name)
    if array.dtype.kind not in "iuf":
        raise FileError(f"{npz.path}: {name} is {array.dtype}: it must be numbers")
    return array.astype(np.float64)


def _counts_if_any(npz: Npz, name: str) -> FloatArray | None:
    return _counts(npz, name) if name in npz.names else None


def _smallest(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Whole numbers in the smallest type that holds them; others as they are."""
    with np.errstate(invalid="ignore"):  # what is beyond is not whole either
        whole = array.astype(np.int64)
    if (whole != array).any():
        return array
    return whole.astype(np.min_scalar_type(whole.max(initial=0)))


def _write(path: Path, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)
