"""What a profile's loads say, and what follows where the file does not say it.

Loads alone are enough, as for DeepSeek's balancer: the model says the top-k, and every token leaves
top-k choices in a layer. Tokens that do not fit the loads are taken from the loads, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray
from placer.consistency import ROUNDING, check_pairs, one_rank
from placer.errors import RoutingError
from placer.files.conventions import rows_with_experts, without
from placer.model import ModelShape

SAVED = 1e-3  # what counts may have lost in a small type


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What a file says beside its loads, or None."""

    top_k: int | None = None
    tokens: float | None = None
    sampled: bool = False

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise RoutingError(f"meta has top_k {self.top_k}: it must be 1 or more, or left out")
        if self.tokens == 0:
            raise RoutingError("meta has tokens 0: it must be more, or left out")


@dataclass(frozen=True, slots=True, eq=False)
class Loads:
    """load: [layers, experts], which are these ``rows`` of the ``rows_read`` that the file has;
    share: of the tokens that the file speaks of, the part that was counted"""

    load: FloatArray
    rows: list[int]
    rows_read: int
    top_k: int
    tokens: float
    sampled: bool
    share: float
    notes: Mapping[str, float]

    def of_layers(self, array: FloatArray) -> FloatArray:
        """The layers with experts, of an array with a row for each row of the loads."""
        return array[self.rows] if len(array) == self.rows_read else array

    def check_pairs(self, transitions: FloatArray | None, coactivation: FloatArray | None) -> None:
        """Raises RoutingError unless tokens with these loads can have these pairs. Shapes that do
        not fit are said by Profile."""
        layers, experts = self.load.shape
        for pairs, rows in ((transitions, layers - 1), (coactivation, layers)):
            if pairs is not None and pairs.shape != (rows, experts, experts):
                return
        told = self.load, self.tokens, self.top_k, transitions, coactivation
        check_pairs(*told, lost=SAVED, sampled=self.sampled)

    def between_layers(self, array: FloatArray) -> FloatArray | None:
        """The same of an array with a row for each two; None if others stand between."""
        if len(self.rows) == self.rows_read or len(array) != self.rows_read - 1:
            return array
        first, last = self.rows[0], self.rows[-1]
        return array[first:last] if last - first == len(self.rows) - 1 else None


def understood(load: FloatArray, told: Told, model: ModelShape | None) -> Loads:
    """The loads of the layers with experts, and of how many tokens they are.

    load: [layers, experts] or [steps, layers, experts]. Raises RoutingError where not even the
    model says what is missing, for counters of one rank, and for loads of layers without experts.
    """
    notes: list[str] = []
    if load.ndim == 3:
        notes.append(f"loads summed over {len(load)} steps (axis 0)")
        load = load.sum(axis=0)
    if load.ndim != 2 or 0 in load.shape:
        raise RoutingError(
            f"load is {list(load.shape)}: it must be [layers, experts] or [steps, layers, experts]"
        )
    if not np.isfinite(load).all() or load.min() < 0:
        raise RoutingError("load holds NaN, infinity or negative counts: record again")
    if not load.any():
        raise RoutingError("an empty profile (no load): record some traffic first")

    read = len(load)
    rows = list(range(read)) if model is None else rows_with_experts(model, read)
    if model is not None and len(rows) < read:
        notes.append(without(model, read, rows))
        if np.delete(load, rows, axis=0).any():
            raise RoutingError(
                f"load has {read} rows, and those of layers without experts in {model.name} "
                "are not zero: is this another model's recording?"
            )
        load = load[rows]

    top_k = told.top_k or (model.top_k if model else None)
    if top_k is None:
        raise RoutingError("loads alone: give --model, which says the top-k (tokens follow)")
    choices = load.sum(axis=1)
    counted = float(choices.max()) / top_k
    ran = choices[choices > 0]
    even = bool((np.abs(ran / top_k - counted) <= ROUNDING * counted).all())
    fits = told.tokens is not None and abs(counted - told.tokens) <= ROUNDING * told.tokens
    is_short = not even or (told.tokens is not None and not fits)
    if (warning := _one_rank(load, is_short, told.sampled)) is not None:
        notes.append(warning)
    if told.tokens is not None and not told.sampled and not (fits and even):
        ends = (f"{one / (told.tokens * top_k):.1%}" for one in (ran.min(), ran.max()))
        part = " to ".join(dict.fromkeys(ends))
        if fits:
            notes.append(f"layers hold {part} of tokens x top-{top_k}")
        else:
            notes.append(
                f"tokens counted from the loads, which are {part} of the file's "
                f"{told.tokens:,.10g} x top-{top_k}"
            )
    share = counted / told.tokens if told.sampled and told.tokens else 1.0
    tokens = told.tokens if fits and told.tokens is not None else counted
    sampled = told.sampled or not even
    return Loads(load, rows, read, top_k, tokens, sampled, share, dict.fromkeys(notes, tokens))


def _one_rank(load: FloatArray, is_short: bool, sampled: bool) -> str | None:
    """The note that these may be one rank's counters. Raises RoutingError if they must be: layers
    hold less than all tokens' choices."""
    experts, where = one_rank(load), ", the same in every layer"
    if experts is None and is_short and not sampled:
        experts, where = one_rank(load, alike=False), " of a layer"
    if experts is None:
        return None
    what = f"only {experts} of {load.shape[1]} experts have any load{where}"
    if is_short:
        raise RoutingError(f"{what}: are these one rank's counters? add up those of all ranks")
    return f"{what}: if these are one rank's counters, add up those of all ranks"
