"""Trace and profile files (.npz); docs/files.md describes them.

A trace has ``expert_ids`` [tokens, layers, top_k] and ``seq_lens`` [sequences], and may have
``token_ids``, ``gates`` and ``meta``, a JSON object. A profile has ``load``, and may have ``meta``,
``transitions`` and ``coactivation``; what SGLang's recorder dumps is one, too.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray
from placer.clusters import Clusters
from placer.errors import FileError
from placer.files.atomic import replacing
from placer.files.conventions import Survey, routed, survey
from placer.files.dumps import logical_count
from placer.files.loads import Loads, Told, understood
from placer.files.npz import Npz, opened, save
from placer.model import ModelShape
from placer.pace import of_meta
from placer.profile import Profile
from placer.spread import Spread
from placer.trace import Trace, check_lengths

VERSIONS = {"placer.trace": 1, "placer.profile": 2}
TOKENS_AT_A_TIME = 65_536
CLUSTERED = ("cluster_tokens", "cluster_requests", "cluster_load")


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its data is read. What it does not say is None.

    layers: its rows, and top_k: its columns, whatever they are (conventions.py)
    outdated: whether its transitions mean something else (``_is_outdated``)
    """

    path: Path
    kind: Literal["trace", "profile"]
    layers: int
    top_k: int | None
    experts: int | None
    tokens: float | None
    meta: Mapping[str, Any]
    outdated: bool = False


def read_header(path: Path) -> Header:
    """Whether ``path`` is a trace or a profile, and of what."""
    if (dumped := logical_count(path)) is not None:
        layers, experts = dumped.shape[-2:] if dumped.ndim > 1 else (0, 0)
        return Header(path, "profile", layers, None, experts, None, {})
    with opened(path) as npz:
        if "expert_ids" in npz.names:
            shape = npz.shape("expert_ids", "tokens, layers, top_k")
            meta = _meta(npz, "placer.trace")
            return Header(path, "trace", shape[1], shape[2], None, shape[0], meta)
        if (name := _load(npz)) is not None:
            *_, layers, experts = npz.shape(name, "layers, experts", "steps, layers, experts")
            meta = _meta(npz, "placer.profile")
            told, outdated = _told(npz, meta), _is_outdated(npz, meta)
            return Header(path, "profile", layers, told.top_k, experts, told.tokens, meta, outdated)
        raise FileError(
            f"{path} is neither a trace (no expert_ids) nor a profile (no load)"
            f": it has {', '.join(sorted(npz.names)) or 'no arrays'}"
        )


def read_trace(path: Path, model: ModelShape) -> Trace:
    """What the routers of ``model`` chose, of a whole trace."""
    with opened(path) as npz:
        lens = _lengths(npz)
        found = routed(model, lens, {name: npz.array(name) for name in _columns(npz)})
        if found is None:
            raise _nobody(path)
        return replace(found, meta=_meta(npz, "placer.trace"))


def read_chunks(path: Path, model: ModelShape) -> Iterator[Trace]:
    """The same trace piece by piece, whole sequences together, for files larger than memory."""
    found = False
    with opened(path) as npz:
        meta = _meta(npz, "placer.trace")
        for lens, arrays in _pieces(npz):
            if (trace := routed(model, lens, arrays)) is not None:
                found = True
                yield replace(trace, meta=meta)
    if not found:
        raise _nobody(path)


def survey_of(path: Path) -> Survey:
    """What the ids of a trace say of its model, for recordings that do not name it."""
    with opened(path) as npz:
        return survey(arrays["expert_ids"] for _, arrays in _pieces(npz))


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


def read_profile(path: Path, model: ModelShape | None = None) -> Profile:
    """A profile, without its transitions if it is outdated; of a file with loads alone the model
    says the rest."""
    if (dumped := logical_count(path)) is not None:
        found = understood(dumped.astype(np.float64), Told(), model)
        return Profile(
            found.load, found.top_k, found.tokens, 0, sampled=found.sampled, notes=found.notes
        )
    with opened(path) as npz:
        meta = _meta(npz, "placer.profile")
        found = understood(_counts(npz, _load(npz) or "load"), _told(npz, meta), model)
        window_s = _number_if_told(npz, meta, "window_s")
        transitions = coactivation = None
        if "transitions" in npz.names and not _is_outdated(npz, meta):
            transitions = found.between_layers(_counts(npz, "transitions"))
        if "coactivation" in npz.names:
            coactivation = found.of_layers(_counts(npz, "coactivation"))
        found.check_pairs(transitions, coactivation)
        return Profile(
            load=found.load,
            top_k=found.top_k,
            tokens=found.tokens,
            sequences=int(_number_if_told(npz, meta, "sequences") or 0),
            transitions=transitions,
            coactivation=coactivation,
            phase=str(meta.get("phase", "mixed")),
            window_s=None if window_s is None else window_s * found.share,
            spread=_spread(npz, meta, found),
            pace=of_meta(meta),
            sampled=found.sampled,
            clusters=_clusters(npz, found),
            notes=found.notes,
        )


def write_profile(path: Path, profile: Profile, model: ModelShape | None = None) -> None:
    names = ("load", "transitions", "coactivation")
    arrays = {n: _smallest(a) for n in names if (a := getattr(profile, n)) is not None}
    meta = {n: getattr(profile, n) for n in ("top_k", "tokens", "sequences", "phase", "window_s")}
    if profile.sampled:
        meta["sampled"] = True
    if (spread := profile.spread) is not None:
        arrays |= {
            "spread_products": _smallest(spread.products),
            "spread_lengths": _smallest(spread.lengths),
        }
        meta |= {"spread_squares": spread.squares, "spread_blocks": spread.blocks}
    if (of := profile.clusters) is not None:
        known = (of.tokens, of.requests, of.load)
        arrays |= {n: _smallest(a) for n, a in zip(CLUSTERED, known, strict=True)}
    if profile.pace is not None:
        meta["pace"] = asdict(profile.pace)
    if model is not None:
        meta["model"] = asdict(model)
    named = {"format": "placer.profile", "version": VERSIONS["placer.profile"]}
    _write(path, arrays, {**meta, **named})


def _columns(npz: Npz) -> list[str]:
    return ["expert_ids", *sorted({"token_ids", "gates"} & npz.names)]


def _load(npz: Npz) -> str | None:
    """The array that a profile's loads are in: placer's name for it, or SGLang's."""
    return next((name for name in ("load", "logical_count") if name in npz.names), None)


def _told(npz: Npz, meta: Mapping[str, Any]) -> Told:
    top_k = _number_if_told(npz, meta, "top_k")
    if top_k is not None and top_k != int(top_k):
        raise FileError(f"{npz.path}: meta has top_k {top_k}: it must be a whole number")
    tokens = _number_if_told(npz, meta, "tokens")
    return Told(None if top_k is None else int(top_k), tokens, meta.get("sampled") is True)


def _lengths(npz: Npz) -> IntArray:
    """seq_lens [sequences], which add up to the tokens."""
    tokens, *_ = npz.shape("expert_ids", "tokens, layers, top_k")
    (sequences,) = npz.shape("seq_lens", "sequences")
    if sequences > tokens:
        raise FileError(
            f"{npz.path}: {sequences} seq_lens but {tokens} tokens"
            ": every sequence must have a token or more"
        )
    lens = npz.array("seq_lens")
    check_lengths(lens, tokens)
    return lens.astype(np.int64)


def _nobody(path: Path) -> FileError:
    return FileError(f"{path}: expert_ids holds padding alone: record the routing again")


def _pieces(npz: Npz) -> Iterator[tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]]:
    """(seq_lens, arrays by name) of consecutive groups of sequences."""
    lens = _lengths(npz)
    ends = np.cumsum(lens)
    group = (ends - 1) // TOKENS_AT_A_TIME
    groups = np.split(lens, np.nonzero(np.diff(group))[0] + 1)
    sizes = [int(part.sum()) for part in groups]
    with ExitStack() as stack:
        columns = {name: stack.enter_context(npz.rows(name, sizes)) for name in _columns(npz)}
        for part in groups:
            yield part, {name: next(rows) for name, rows in columns.items()}


def _meta(npz: Npz, kind: str) -> dict[str, Any]:
    return npz.meta(kind, VERSIONS[kind])


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


def _number_if_told(npz: Npz, meta: Mapping[str, Any], name: str) -> float | None:
    return None if meta.get(name) is None else _number(npz, meta, name)


def _spread(npz: Npz, meta: Mapping[str, Any], of: Loads) -> Spread | None:
    if "spread_products" not in npz.names:
        return None
    return Spread(
        products=of.of_layers(_counts(npz, "spread_products")),
        lengths=of.of_layers(_counts(npz, "spread_lengths")),
        squares=_number(npz, meta, "spread_squares"),
        blocks=int(_number(npz, meta, "spread_blocks")),
    )


def _clusters(npz: Npz, of: Loads) -> Clusters | None:
    if "cluster_load" not in npz.names:
        return None
    tokens, requests, load = (_counts(npz, name) for name in CLUSTERED)
    by_layer = np.moveaxis(load, 1, 0) if load.ndim == 3 else load
    return Clusters(tokens, requests, np.moveaxis(of.of_layers(by_layer), 0, 1))


def _counts(npz: Npz, name: str) -> FloatArray:
    array = npz.array(name)
    if array.dtype.kind not in "iuf":
        raise FileError(f"{npz.path}: {name} is {array.dtype}: it must be numbers")
    return array.astype(np.float64)


def _smallest(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Whole numbers in the smallest type that holds them; others as they are."""
    with np.errstate(invalid="ignore"):  # what is beyond is not whole either
        whole = array.astype(np.int64)
    if (whole != array).any():
        return array
    return whole.astype(np.min_scalar_type(whole.max(initial=0)))


def _write(path: Path, arrays: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        save(file, arrays, meta)
