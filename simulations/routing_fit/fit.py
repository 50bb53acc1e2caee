"""A router's numbers from a recorded trace: those with which drawn traces have its moments.

Each number has a moment that it moves most (``moments``); all are solved for together, by least
squares of the moments' square roots, which grow about as the numbers do. Traces are drawn with the
same lots each time. A number is none if traces that are drawn without it have its moment as well,
within chance.
"""

from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from placer.arrays import FloatArray, IntArray
from placer.errors import RoutingError
from placer.trace import Trace
from simulations.routing_fit.moments import Moments, moments
from simulations.routing_fit.router import Router

FEWEST_SEQUENCES = 12
FEWEST_USES = 64  # of an expert, in the mean
MOST_SEQUENCES = 256  # that are drawn to fit
CELLS = 5_000_000  # tokens * layers * experts of them: a third of a second
STEPS, STEP = 8, 0.1  # of least squares, and how far they look to see where it goes down
LEAST = 0.02  # of a moment's root, below which nobody minds
CHANCE = 3.0  # deviations of a moment that say nothing
NULLS = 4  # traces that these are taken from
MOST_CLUSTERS = 64


@dataclass(frozen=True, slots=True)
class _Number:
    """first, least, most: of what is solved for; needs: without which it means nothing"""

    first: float
    least: float
    most: float
    needs: str = ""

    def value(self, name: str, x: float) -> float:
        if name == "stays":
            return float(1 - 10**-x)
        return float(2**x if name == "factors" else x)


NUMBERS = {
    "skew": _Number(0.7, 0.0, 6.0),
    "together": _Number(2.0, 0.0, 20.0),
    "factors": _Number(2.0, 0.0, 6.0, "together"),
    "stays": _Number(1.0, 0.0, 4.0, "together"),
    "variety": _Number(1.0, 0.0, 20.0),
    "shared": _Number(0.5, 0.0, 1.0, "variety"),
    "drift": _Number(0.5, 0.0, 20.0, "shared"),
}


def fit(trace: Trace, seed: int = 0) -> Router:
    """Raises RoutingError for a trace too short to tell."""
    uses = trace.tokens * trace.top_k / trace.experts
    if trace.sequences < FEWEST_SEQUENCES or uses < FEWEST_USES:
        raise RoutingError(
            f"{trace.sequences} sequences of {trace.tokens:,} tokens, which use an expert "
            f"{uses:,.0f} times in the mean, are too few to fit a router to: record "
            f"{FEWEST_SEQUENCES} sequences or more, and {FEWEST_USES} uses"
        )
    return _Fit(trace, seed).found()


class _Fit:
    """x: what is solved for, by the number's name; those that are none are not there"""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.dims = trace.layers, trace.experts, trace.top_k
        self.seed, self.wanted = seed, moments(trace)
        self.lens = _shorter(trace, seed)
        self.x = {name: number.first for name, number in NUMBERS.items()}
        self.like = Router(
            clusters=round(clusters_of(self.wanted)),
            length=float(trace.seq_lens.mean()),
            spread=float(np.log(trace.seq_lens).std()),
        )
        if trace.layers < 2:
            del self.x["stays"]

    def found(self) -> Router:
        self._solve()
        off = clusters_of(self.wanted) - clusters_of(self._drawn(self.router()))
        count = round(min(max(self.like.clusters + off, 2), MOST_CLUSTERS))
        if count != self.like.clusters:
            self.like = replace(self.like, clusters=count)
            self._solve()
        for name in ("together", "variety", "shared", "drift", "skew", "stays"):
            if name in self.x and self._is_none(name):
                self._drop(name)
                self._solve()
        router = self.router()
        return router if router.shared else replace(router, clusters=1)

    def router(self, **instead: float) -> Router:
        numbers: dict[str, Any] = {name: NUMBERS[name].value(name, x) for name, x in self.x.items()}
        return replace(self.like, **{**numbers, **instead})

    def _drawn(self, router: Router, seed: int = 0) -> Moments:
        return moments(router.draw(*self.dims, self.lens, self.seed + seed))

    def _is_none(self, name: str) -> bool:
        router = self.router(**{name: 0.0})
        found = [getattr(self._drawn(router, seed), name) for seed in range(NULLS)]
        return bool(getattr(self.wanted, name) <= fmean(found) + CHANCE * stdev(found))

    def _drop(self, name: str) -> None:
        for other, number in NUMBERS.items():
            if other in self.x and number.needs == name:
                self._drop(other)
        del self.x[name]

    def _solve(self) -> None:
        if not self.x:
            return
        names = list(self.x)
        wanted = _roots(self.wanted, names)

        def off(x: FloatArray) -> FloatArray:
            self.x = dict(zip(names, x.tolist(), strict=True))
            found: FloatArray = (_roots(self._drawn(self.router()), names) - wanted) / wanted
            return found

        bounds = [(NUMBERS[name].least, NUMBERS[name].most) for name in names]
        first = [min(max(self.x[name], low + STEP), high - STEP)
                 for name, (low, high) in zip(names, bounds, strict=True)]  # fmt: skip
        solved = least_squares(
            off, first, bounds=tuple(zip(*bounds, strict=True)), diff_step=STEP, max_nfev=STEPS
        )
        self.x = dict(zip(names, solved.x.tolist(), strict=True))


def _roots(found: Moments, names: list[str]) -> FloatArray:
    return np.sqrt(np.maximum([getattr(found, name) for name in names], LEAST**2))


def _shorter(trace: Trace, seed: int) -> IntArray:
    """Lengths like the trace's, of as many tokens as are drawn to fit: moments do not depend on
    how long sequences are."""
    lens = trace.seq_lens
    if trace.sequences > MOST_SEQUENCES:
        kept = np.random.default_rng(seed).permutation(trace.sequences)[:MOST_SEQUENCES]
        lens = lens[np.sort(kept)]
    share = CELLS / (trace.layers * trace.experts * int(lens.sum()))
    return np.maximum((lens * min(share, 1.0)).astype(np.int64), 2)


def clusters_of(found: Moments) -> float:
    """About how many: of n as large, which share the part s of a request's variance v, ``shared``
    is v^2 s^2 / (n - 1) and ``grouped`` v^3 s^3 / (n - 1)^2."""
    if found.shared <= 0 or found.grouped <= 0:
        return 2.0
    return min(max(1 + found.shared**3 / found.grouped**2, 2.0), float(MOST_CLUSTERS))
