"""One decision: which engine of the pool, and which rank of it, for a request. See
docs/prescheduling.md for the formula.

The largest of, in GPU seconds and over all ranks r of all engines e that it may go to:

    local_s * left[r] * share[r]            tokens whose experts are on their own GPU
    + prefill_s * cached[r]                 tokens of the prompt that need not be computed
    - read_s * generated * read[e]          experts that steps read, by each of its requests
    - left[r] * dear[r]                     so that ranks get as many tokens
    - local_s * others[e] * over[r]         other ranks wait for tokens that r has no room for

of those that are to get more in this window. An engine's part is the same for all its ranks, so
that the best rank of the best engine is the best of all.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from controller.router.scheduling import kernels
from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Pool
from controller.router.scheduling.request import FIGURES, TOLD, Decision, Request, Why
from placer import names
from placer.arrays import FloatArray, IntArray
from placer.cost.requests import Costs
from placer.errors import PlacerError

SCHEDULERS: Mapping[str, int] = {
    "seconds": kernels.SECONDS,
    "round_mask": kernels.ROUND_MASK,
    "least_loaded": kernels.LEAST_LOADED,
    "eldr": kernels.ELDR,
}
NO_TOKENS: IntArray = np.zeros(0, dtype=np.int64)


class NoRankError(PlacerError):
    """No rank takes requests."""


class Prices(NamedTuple):
    """What seconds cost, and what the stream taught.

    fitted: mean gain of the best rank over the mean one, GPU seconds a token; mean tokens a
            request; mean squared error of tokens generated, and their mean; requests chosen for,
            and ended; requests of this window, and those of them that are to come
    """

    costs: Costs
    fitted: FloatArray

    @classmethod
    def at_first(cls, costs: Costs) -> "Prices":
        """Nobody has ended: each is taken to generate as many as it may."""
        fitted = np.zeros(8)
        fitted[kernels.GENERATED] = np.inf
        return cls(costs, fitted)


def rule_of(name: str) -> int:
    """Raises PlacerError with the nearest name."""
    return names.lookup("scheduler", name, SCHEDULERS, PlacerError)


def decide(
    request: Request,
    pool: Pool,
    tables: Lookup,
    prices: Prices,
    cached: FloatArray | None = None,
    rule: str = "seconds",
) -> Decision:
    """Where the request goes. Nothing is changed. Raises NoRankError if no rank is open.

    cached: [R] tokens of its prompt that each rank has
    """
    at, told, _ = ask(request, pool, tables, prices, cached, rule_of(rule), False)
    return decided(pool, rule, at, told.tolist())


def check_open(pool: Pool) -> None:
    if not np.count_nonzero(pool.ranks.open):
        raise NoRankError(
            f"none of the pool's {len(pool.places)} ranks takes requests: wait until one is ready"
        )


def ask(
    request: Request,
    pool: Pool,
    tables: Lookup,
    prices: Prices,
    cached: FloatArray | None,
    rule: int,
    counts: bool,
) -> tuple[int, FloatArray, IntArray]:
    """The place of the rank, what is told of it, and the sums of the tables' rows.

    counts: whether the request is the rank's from now on: backlog, prices and what is fitted change
    """
    check_open(pool)
    # Of one type, so that kernels are compiled once.
    tokens = NO_TOKENS if request.tokens is None else request.tokens.astype(np.int64, copy=False)
    here = np.zeros(len(pool.places)) if cached is None else cached
    told = np.empty(FIGURES)
    sums = np.empty(tables.tables.values.shape[1], dtype=np.int64)
    at = kernels.one(
        rule, pool.ranks, tables.tables, prices.costs, prices.fitted, tokens,
        (float(request.length), float(request.most), here), sums, told, counts,
    )  # fmt: skip
    return int(at), told, sums


def decided(pool: Pool, rule: str, at: int, told: Sequence[float], number: int = 0) -> Decision:
    engine, rank = pool.places[at]
    return Decision(engine, rank, Why(rule, *told[:TOLD]), number)
