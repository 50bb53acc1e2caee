"""Tokens, ranks and requests that a reader can count: token t has all its experts on rank t."""

from collections.abc import Sequence

import numpy as np

from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Request
from controller.router.scheduling.scheduler import Scheduler
from placer.arrays import FloatArray
from placer.cost.requests import Costs
from placer.tables import TokenTable, Vocabulary
from placer.tables.factors import factors

SECOND_EACH = Costs(local_s=1.0, prefill_s=1.0, read_s=1.0)


def a_request(*tokens: int, most: int = 0, prefix: Sequence[int] = ()) -> Request:
    return Request(np.array(tokens, dtype=np.int64), len(tokens), most, tuple(prefix))


def a_lookup(*shares: Sequence[Sequence[float]]) -> Lookup:
    """Of each map, what each token gains on each rank; the last row is of other tokens."""
    ids = np.arange(len(shares[0]) - 1)
    return Lookup.of(Vocabulary(ids, ids), [np.array(one) for one in shares])


def own_ranks(ranks: int) -> Lookup:
    """Token t gains all on rank t, others as much everywhere."""
    return a_lookup([*np.eye(ranks).tolist(), [1 / ranks] * ranks])


def of_kinds(kinds: int) -> tuple[Lookup, FloatArray]:
    """Of engines of one rank: token t uses expert t alone, in one layer."""
    counts = np.concatenate([np.eye(kinds), np.ones((1, kinds))])[None].astype(np.int64)
    times = np.append(np.ones(kinds, dtype=np.int64), kinds)
    vocabulary = Vocabulary(np.arange(kinds), np.arange(kinds))
    table = TokenTable(vocabulary, times, counts, 1)
    return Lookup.of(vocabulary, [np.ones((kinds + 1, 1))], factors(table)), counts[0] / times[
        :, None
    ]


def a_scheduler(ranks: int = 2, engines: int = 1, **more: object) -> Scheduler:
    """Of engines e0, e1, ... with so many ranks each, which share the map of ``own_ranks``."""
    pool = [Engine(f"e{one}", ranks) for one in range(engines)]
    return Scheduler(pool, SECOND_EACH, own_ranks(ranks), **more)  # type: ignore[arg-type]
