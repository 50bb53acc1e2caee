"""The engines that a request may go to, and what is known of their ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray

RECENT = 64  # requests by which ranks are priced


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine of a pool, which holds all experts.

    ranks:     data-parallel ranks
    kv_tokens: that each rank has KV room for; None: not known, and nobody is turned away for it
    draining:  ranks that take no more requests
    table:     which of the tables its map belongs to; None: of this map there is none
    """

    name: str
    ranks: int
    kv_tokens: int | None = None
    draining: frozenset[int] = frozenset()
    table: int | None = 0


class Ranks(NamedTuple):
    """All ranks of all engines, R of them, one engine after another.

    engine:  [R] the engine of each
    others:  [R] ranks of its engine besides it
    column:  [R] that of the tables which tells what it holds; of no matter if nothing does
    chance:  [R] share of a token's experts that it has, if nothing is known; else 0
    open:    [R] whether it takes requests
    kv:      [R] tokens that it has room for, in all
    held:    [R] tokens that it keeps, or will, for the requests that it has
    backlog: [R] tokens that it has to compute still
    sent:    [R] requests that it got
    dear:    [R] its price, GPU seconds a token
    given:   [R] tokens that it got in this window, and an eighth of what it was ahead before
    ahead:   [R] tokens that it got more than others did, as far as is known
    longer:  [R] tokens that its requests generated, over what was expected of any
    ended:   [R] those requests
    recent:  [R, requests] GPU seconds a token that each of the last requests would have saved
    sizes:   [requests] its tokens
    unread:  [engines, cells] log of the chance that an expert is read by none of the engine's
             requests in a step
    missing: [engines, width] that chance by the tables' factors, summed: experts yet to be read
    reads:   [engines] distinct experts that a step reads, over all layers
    running: [engines] requests for which it reads them
    """

    engine: IntArray
    others: FloatArray
    column: IntArray
    chance: FloatArray
    open: BoolArray
    kv: FloatArray
    held: FloatArray
    backlog: FloatArray
    sent: IntArray
    dear: FloatArray
    given: FloatArray
    ahead: FloatArray
    longer: FloatArray
    ended: FloatArray
    recent: FloatArray
    sizes: FloatArray
    unread: FloatArray
    missing: FloatArray
    reads: FloatArray
    running: FloatArray


class Case(NamedTuple):
    """A request as ranks see it.

    share:     [R] of its experts at home
    added:     [engines] experts that a step has to read for it beside those read anyway
    left:      [R] tokens to compute
    need:      tokens of KV
    generated: tokens that it is expected to generate
    cached:    [R] tokens of its prompt that a rank has
    """

    share: FloatArray
    added: FloatArray
    left: FloatArray
    need: float
    generated: float
    cached: FloatArray


class Pool(NamedTuple):
    """places: [R] engine's name and rank of each rank"""

    places: tuple[tuple[str, int], ...]
    ranks: Ranks


def laid_out(engines: Sequence[Engine], first: Sequence[int], basis: FloatArray) -> Pool:
    """The engines' ranks, with nothing to do.

    first: the first column of each table, and of what comes after them
    basis: [width, cells] of the tables' factors
    """
    found = [_columns(one, first) for one in engines]
    columns = np.concatenate([np.zeros(0, dtype=np.int64), *found])
    sizes = np.array([one.ranks for one in engines], dtype=np.int64)
    total = int(sizes.sum())
    room = [np.inf if one.kv_tokens is None else float(one.kv_tokens) for one in engines]
    is_open = [rank not in one.draining for one in engines for rank in range(one.ranks)]
    ranks = Ranks(
        engine=np.repeat(np.arange(len(engines)), sizes),
        others=np.repeat(sizes - 1.0, sizes),
        column=np.maximum(columns, 0),
        chance=np.where(columns < 0, np.repeat(1 / sizes, sizes), 0.0),
        open=np.array(is_open, dtype=np.bool_),
        kv=np.repeat(room, sizes),
        held=np.zeros(total),
        backlog=np.zeros(total),
        sent=np.zeros(total, dtype=np.int64),
        dear=np.zeros(total),
        given=np.zeros(total),
        ahead=np.zeros(total),
        longer=np.ones(total),
        ended=np.zeros(total),
        recent=np.zeros((total, RECENT)),
        sizes=np.zeros(RECENT),
        unread=np.zeros((len(engines), basis.shape[1])),
        missing=np.tile(basis.sum(axis=1), (len(engines), 1)),
        reads=np.zeros(len(engines)),
        running=np.zeros(len(engines)),
    )
    return Pool(tuple((one.name, rank) for one in engines for rank in range(one.ranks)), ranks)


def _columns(engine: Engine, first: Sequence[int]) -> IntArray:
    """[ranks] those of the engine's map; -1 if there is none of so many ranks."""
    if engine.table is not None and engine.table + 1 < len(first):
        of_map = np.arange(first[engine.table], first[engine.table + 1])
        if len(of_map) == engine.ranks:
            return of_map
    return np.full(engine.ranks, -1)
