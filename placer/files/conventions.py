"""What engines write into a recording beside routed experts, and what is left out of it.

- a row for every layer of the model, with or without experts (SGLang);
- a column for a shared expert that is computed as if it were routed, id ``experts`` or more
  (SGLang, AITER), which no router chose;
- ids of no expert for tokens that only fill up a batch: -1, or the largest of an unsigned type.

What is left out is told in the notes of the Trace or Profile, with the tokens that it was left out
of. A model says what belongs; a file that names none is surveyed first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placer.arrays import BoolArray, IntArray
from placer.bounds import MOST_EXPERTS
from placer.errors import RoutingError
from placer.model import ModelShape
from placer.trace import Trace

MOST_PAIRS = 2**25  # layers x experts^2 that are counted of a model nobody names: 1 GB
BY_CHANCE = 32  # so many tokens or more never choose the same experts by chance


def rows_with_experts(model: ModelShape, rows: int) -> list[int]:
    """Which rows of a recording are the model's layers with experts: of a recording with a row for
    every layer of the model those that have any, of others all."""
    every = rows != model.layers and rows > model.moe_layers[-1]
    return list(model.moe_layers) if every else list(range(rows))


def without(model: ModelShape, rows: int, kept: Sequence[int]) -> str:
    """The note that the other rows were left out."""
    absent = sorted(set(range(rows)) - set(kept))
    return f"rows {_listed(absent)} of {rows} left out: layers of {model.name} without experts"


def routed(
    model: ModelShape, lens: IntArray, arrays: Mapping[str, npt.NDArray[Any]]
) -> Trace | None:
    """What routers chose, of a trace as an engine wrote it; None if all of it is padding.

    lens: [sequences]; arrays: expert_ids [tokens, layers, columns], and token_ids and gates, if
    known. Raises RoutingError for what cannot be told from routed experts.
    """
    arrays, notes = dict(arrays), dict[str, float]()
    ids = _integers(arrays["expert_ids"])

    rows = rows_with_experts(model, ids.shape[1])
    if len(rows) < ids.shape[1]:
        _check_constant(model, ids, rows)
        notes[without(model, ids.shape[1], rows)] = len(ids)
        arrays |= {name: arrays[name][:, rows] for name in _by_expert(arrays)}
        ids = arrays["expert_ids"]

    columns, others = _columns(model, ids)
    if len(others):
        empty = np.isin(ids[:, :, others], _nobody(ids.dtype, model.experts)).all()
        why = (
            "no ids of experts, but padding"
            if empty
            else f"ids from {model.experts} on are shared experts', which no router chose"
        )
        notes[f"column {_listed(others)} of {ids.shape[2]} left out: {why}"] = len(ids)
        arrays |= {name: arrays[name][:, :, columns] for name in _by_expert(arrays)}
        ids = arrays["expert_ids"]

    padding = is_padding(ids, model.experts)
    if padding.any():
        notes[f"rows of padding left out (id {ids[padding][0, 0, 0]} throughout)"] = int(
            padding.sum()
        )
        arrays = {name: array[~padding] for name, array in arrays.items()}
        lens = _lengths(lens, ~padding)
    if not len(lens):
        return None
    check_rows(arrays["expert_ids"], model.experts)
    return Trace(
        expert_ids=arrays["expert_ids"],
        seq_lens=lens,
        experts=model.experts,
        token_ids=arrays.get("token_ids"),
        gates=arrays.get("gates"),
        notes=notes,
    )


def is_padding(ids: IntArray, experts: int | None) -> BoolArray:
    """[tokens] which of them have the same id of no expert throughout. ids: [tokens, layers, top_k]

    The largest id of an 8-bit type may be an expert's: not if a layer would have chosen it twice.
    """
    if ids.shape[2] > 1:
        experts = 0
    elif experts is None:
        experts = 0 if ids.shape[1] > 1 else MOST_EXPERTS
    first = ids[:, 0, 0]
    found = np.isin(first, _nobody(ids.dtype, experts))
    rows = np.flatnonzero(found)
    found[rows] = (ids[rows] == first[rows, None, None]).all(axis=(1, 2))
    return found


def check_rows(ids: IntArray, experts: int) -> None:
    """Raises RoutingError for layers in which no router chose, and for tokens with fewer experts
    than columns. ids: [tokens, layers, top_k] without padding"""
    alike = np.flatnonzero((ids[0] == ids[len(ids) // 2]).all(axis=1))
    for layer in alike if len(ids) > 1 else []:
        row = ids[0, layer]
        impossible = len(set(row.tolist())) < len(row)
        if (impossible or len(ids) >= BY_CHANCE) and (ids[:, layer] == row).all():
            raise RoutingError(
                f"layer {layer} has the same ids in every token ({_listed(row)})"
                ": a layer without experts? leave it out, or give the --model that says so"
            )
    if ids.min() >= 0 and ids.max() < experts:
        return
    if (absent := np.isin(ids, _nobody(ids.dtype, experts))).any():
        token, layer = np.argwhere(absent.any(axis=2))[0]
        raise RoutingError(
            f"token {token} has {(~absent[token, layer]).sum()} of {ids.shape[2]} experts in layer "
            f"{layer} (id {ids[token, layer][absent[token, layer]][0]} is padding): all tokens "
            "must have as many; leave out those that have fewer"
        )
    if ids.max() >= experts:
        raise RoutingError(
            f"expert id {ids.max()} is outside 0..{experts - 1}: is this another model's trace, or "
            "are these zero experts or shared ones, which are not routed to any GPU?"
        )


@dataclass(frozen=True, slots=True)
class Survey:
    """What the ids of a trace say of its model."""

    experts: int
    top_k: int


def survey(pieces: Iterable[IntArray]) -> Survey:
    """Of [tokens, layers, columns] after [tokens, layers, columns]. Raises RoutingError if there is
    no expert's id, or one that no model has."""
    low = high = np.empty(0, np.int64)
    tokens = layers = 0
    any_expert, padding = False, ""
    for piece in pieces:
        ids = _integers(piece)
        absent = is_padding(ids, None)
        if absent.any():
            padding = f" (id {ids[absent][0, 0, 0]} throughout, which is padding)"
            ids = ids[~absent]
        is_expert = (ids >= 0) & (ids < MOST_EXPERTS)
        here = (
            ids.min(axis=(0, 1), where=is_expert, initial=_largest(ids.dtype)),
            ids.max(axis=(0, 1), where=is_expert, initial=0),
        )
        if not tokens:
            low, high = here
        elif len(ids):
            low, high = np.minimum(low, here[0]), np.maximum(high, here[1])
        tokens, layers = tokens + len(ids), ids.shape[1]
        any_expert |= bool(is_expert.any())
    if not any_expert:
        raise RoutingError(f"expert_ids holds no expert's id{padding}: record the routing again")
    routed = low < high
    shared = (low == high) & (low > high[routed].max(initial=0))
    if tokens * layers < BY_CHANCE or not routed.any():
        shared[:] = False
    else:
        _check_groups(low[routed], high[routed])
    columns = (low <= high) & ~shared
    experts = int(high[columns].max()) + 1
    if layers * experts**2 > MOST_PAIRS:
        raise RoutingError(
            f"expert id {experts - 1} in {layers} layers: no such model is known; give --model"
        )
    return Survey(experts, int(columns.sum()))


def _check_groups(low: IntArray, high: IntArray) -> None:
    """Raises RoutingError if some columns have ids of their own, above those of all others: of
    shared experts that have replicas, or of groups. low, high: [columns]"""
    order = np.argsort(low)
    low, high = low[order], np.maximum.accumulate(high[order])
    if (apart := np.flatnonzero(low[1:] > high[:-1])).size:
        at = apart[-1]
        raise RoutingError(
            f"columns have ids of their own (up to {high[at]}, and {low[at + 1]} to {high[-1]}): "
            "shared experts, or groups? give --model, which says how many are routed"
        )


def _integers(ids: npt.NDArray[Any]) -> IntArray:
    if ids.dtype.kind not in "iu":
        raise RoutingError(
            f"expert_ids is {ids.dtype}{list(ids.shape)}: it must be integers [tokens, layers, "
            "top_k]; save .astype(np.int32) of it"
        )
    if 0 in ids.shape[1:]:
        raise RoutingError(
            f"expert_ids is {list(ids.shape)}: without layers or experts it says nothing; record "
            "the routing again"
        )
    return ids


def _largest(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).max)


def _nobody(dtype: np.dtype[Any], experts: int) -> IntArray:
    """Ids from ``experts`` on that stand for none: -1 as written, or cast to unsigned, or widened
    after that; and the largest."""
    known = np.iinfo(dtype)
    every = {-1, known.max, 2**31 - 1, 2**32 - 1} - set(range(experts))
    return np.array([value for value in every if known.min <= value <= known.max], dtype)


def _by_expert(arrays: Mapping[str, npt.NDArray[Any]]) -> set[str]:
    """Those that have layers and columns."""
    return {"expert_ids", "gates"} & arrays.keys()


def _check_constant(model: ModelShape, ids: IntArray, rows: Sequence[int]) -> None:
    for row in set(range(ids.shape[1])) - set(rows):
        chosen = ids[~is_padding(ids, model.experts), row]
        if len(chosen) and (chosen != chosen[0]).any():
            raise RoutingError(
                f"layer {row} has no experts in {model.name}, but its tokens have different ids"
                ": is this another model's trace?"
            )


def _columns(model: ModelShape, ids: IntArray) -> tuple[IntArray, IntArray]:
    """The columns that a router chose, and those of shared experts or of nobody."""
    every = np.arange(ids.shape[2])
    if len(every) <= model.top_k:
        return every, every[:0]
    some = ids[~is_padding(ids, model.experts)]
    others = ((some < 0) | (some >= model.experts)).all(axis=(0, 1))
    if (~others).sum() != model.top_k:
        return every, every[:0]
    return every[~others], every[others]


def _lengths(lens: IntArray, kept: BoolArray) -> IntArray:
    """[sequences] of what is kept; sequences of which nothing is are gone. kept: [tokens]"""
    starts = np.cumsum(lens) - lens
    left: IntArray = np.add.reduceat(kept.astype(np.int64), starts)
    return left[left > 0]


def _listed(numbers: Iterable[Any]) -> str:
    """ "0 to 2" for 0, 1, 2; all of them if they do not follow each other."""
    values = [int(number) for number in numbers]
    if len(values) > 2 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
