"""A scheduler's state: what it sent where, what came of it, and what it learnt."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from controller.router.scheduling import kernels
from controller.router.scheduling.decide import Prices, ask, check_open, decided, rule_of
from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Engine, laid_out
from controller.router.scheduling.prefixes import Prefixes
from controller.router.scheduling.request import (
    COMING,
    FIGURES,
    LEFT,
    NEED,
    SCORED,
    Decision,
    Request,
)  # fmt: skip
from placer.arrays import FloatArray, IntArray
from placer.cost.requests import Costs

NO_FACTORS: FloatArray = np.zeros(0)
KEPT = ("held", "backlog", "sent", "dear", "given", "ahead", "longer", "ended", "recent")
BLOCK_TOKENS = 16  # of vLLM's prefix cache


@dataclass(slots=True)
class _Live:
    """A request that was sent.

    at:       its rank's place in the pool; -1 if that is gone
    prompt:   tokens of its prompt that are still to compute
    coming:   tokens that it is still expected to generate
    expected: tokens that it was expected to generate in all; generated: that it did so far
    need:     tokens of KV
    factors:  of the experts that it reads; empty if nobody asks
    """

    at: int
    prompt: float
    coming: float
    expected: float
    need: float
    factors: FloatArray
    generated: int = 0


class Batch(NamedTuple):
    """Requests one after another, without prefixes.

    tokens:   of all prompts, laid end to end
    seq_lens: [requests] of each prompt
    most:     [requests] tokens that each may generate
    """

    tokens: IntArray
    seq_lens: IntArray
    most: IntArray


class Scheduler:
    """Chooses an engine and a rank for each request, one after another; see docs/prescheduling.md.

    The caller tells what comes of them; one thread at a time may call.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        costs: Costs,
        tables: Lookup | None = None,
        name: str = "seconds",
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        """tables: what is known of tokens; of ``round_mask`` their votes, of ``eldr`` how similar
        they are to its centroids (rivals.py). Raises PlacerError for an unknown name."""
        self.name, self._rule = name.lower(), rule_of(name)
        self.tables = Lookup.nothing() if tables is None else tables
        self.prices = Prices.at_first(costs)
        self._prefixes = Prefixes(block_tokens)
        self._live: dict[int, _Live] = {}
        self._decisions = 0
        self.pool = laid_out(engines, self.tables.first, self.tables.tables.basis)
        self._others = np.zeros(len(self.pool.places))  # tokens of their backlogs

    def see(
        self,
        engines: Sequence[Engine],
        tables: Lookup | None = None,
        costs: Costs | None = None,
    ) -> None:
        """The engines from now on, and their tables and what seconds cost if there are new ones.
        What was learnt of a rank stays with its engine's name and its number; a new one starts
        without debts."""
        if costs is not None:
            self.prices = self.prices._replace(costs=costs)
        if tables is not None:
            self.tables = tables
        old, at = self.pool, {place: index for index, place in enumerate(self.pool.places)}
        new = laid_out(engines, self.tables.first, self.tables.tables.basis)
        before = np.array([at.get(place, -1) for place in new.places], dtype=np.int64)
        stayed = before >= 0
        new.ranks.sent[:] = old.ranks.sent.min(initial=0)
        new.ranks.given[:] = old.ranks.given.mean() if len(old.places) else 0.0
        new.ranks.sizes[:] = old.ranks.sizes
        for field in KEPT:
            getattr(new.ranks, field)[stayed] = getattr(old.ranks, field)[before[stayed]]
        others = np.zeros(len(new.places))
        others[stayed] = self._others[before[stayed]]
        self._others = others
        now = {int(was): index for index, was in enumerate(before) if was >= 0}
        self.pool = new
        self._prefixes.renumber(before)
        for live in self._live.values():
            live.at = now.get(live.at, -1)
            if tables is not None:  # of other factors
                live.factors = live.factors[:0]
            self._read(live, 1.0)

    def hear(self, others: Mapping[tuple[str, int], float]) -> None:
        """Requests at each rank that somebody else sent, as its engine tells: each is as much
        backlog as a mean request."""
        each = max(float(self.prices.fitted[kernels.TOKENS]), 1.0)
        now = np.array([others.get(place, 0.0) * each for place in self.pool.places])
        self.pool.ranks.backlog[:] += now - self._others
        self._others = now

    def decide(self, request: Request) -> Decision:
        """What ``choose`` would answer. Nothing changes."""
        cached = self._cached(request)
        at, told, _ = ask(request, self.pool, self.tables, self.prices, cached, self._rule, False)
        return decided(self.pool, self.name, at, told.tolist())

    def choose(
        self, request: Request, among: Collection[tuple[str, int]] | None = None
    ) -> Decision:
        """Where it goes; from then on it counts as that rank's. among: the only ranks that it may
        go to. Raises NoRankError if none is open."""
        if among is not None:
            with self._only(among):
                return self.choose(request)
        cached = self._cached(request)
        at, told, sums = ask(request, self.pool, self.tables, self.prices, cached, self._rule, True)
        self._prefixes.remember(request.prefix, at)
        self._decisions += 1
        figures = told.tolist()
        self._live[self._decisions] = self._begun(at, figures, sums)
        return decided(self.pool, self.name, at, figures, self._decisions)

    def choose_many(self, batch: Batch) -> list[Decision]:
        """As ``choose`` for each in turn, faster. Raises NoRankError if no rank is open."""
        ranks, told, sums = self.placed(batch)
        first = self._decisions + 1
        self._decisions += len(ranks)
        decisions = []
        for index, at in enumerate(ranks.tolist()):
            figures = told[index].tolist()
            self._live[first + index] = self._begun(at, figures, sums[index])
            decisions.append(decided(self.pool, self.name, at, figures, first + index))
        return decisions

    def began(self, decision: Decision) -> None:
        """Its first token came: its prompt is computed."""
        if (live := self._live.get(decision.number)) is not None:
            self._relieve(live, live.prompt)
            live.prompt = 0.0

    def generated(self, decision: Decision, tokens: int) -> None:
        """So many more tokens came."""
        if (live := self._live.get(decision.number)) is not None:
            live.generated += tokens
            fewer = min(float(tokens), live.coming)
            live.coming -= fewer
            self._relieve(live, fewer)

    def ended(self, decision: Decision, generated: int | None = None) -> None:
        """It finished or was given up, after so many tokens in all; None: those it was told of."""
        live = self._live.pop(decision.number, None)
        if live is None:
            return
        tokens = live.generated if generated is None else generated
        self._relieve(live, live.prompt + live.coming)
        self._read(live, -1.0)
        if live.at >= 0:
            self.pool.ranks.held[live.at] -= live.need
        skipped = 0.0 if tokens else live.prompt  # it never began
        kernels.learn(
            self.pool.ranks, self.prices.fitted, live.at, float(tokens), live.expected + skipped
        )

    @contextmanager
    def _only(self, among: Collection[tuple[str, int]]) -> Iterator[None]:
        """For one decision no other rank is open."""
        is_open = self.pool.ranks.open
        before = is_open.copy()
        is_open &= [place in among for place in self.pool.places]
        try:
            yield
        finally:
            is_open[:] = before

    def placed(self, batch: Batch) -> tuple[IntArray, FloatArray, IntArray]:
        """Of each request its rank's place in the pool, what is told of it, and the sums of its
        tables; they count as that rank's for good, since nobody can tell that they ended."""
        check_open(self.pool)
        count, of = len(batch.seq_lens), self.tables.tables
        sums = np.empty((count, of.values.shape[1]), dtype=np.int64)
        told = np.empty((count, FIGURES))
        ends = np.cumsum(batch.seq_lens, dtype=np.int64)
        found: IntArray = kernels.many(
            self._rule, self.pool.ranks, of, self.prices.costs, self.prices.fitted,
            batch.tokens.astype(np.int64), ends, batch.most.astype(np.int64), sums, told,
        )  # fmt: skip
        return found, told, sums

    def _cached(self, request: Request) -> FloatArray | None:
        if not request.prefix:
            return None
        return self._prefixes.cached(request.prefix, request.length, len(self.pool.places))

    def _begun(self, at: int, told: Sequence[float], sums: IntArray) -> _Live:
        coming, left = told[COMING], told[LEFT]
        width = len(self.tables.tables.basis) if coming else 0
        factors = sums[len(sums) - width :] / told[SCORED] if width else NO_FACTORS
        return _Live(at, left - coming, coming, coming, told[NEED], factors)

    def _relieve(self, live: _Live, tokens: float) -> None:
        if live.at >= 0:
            self.pool.ranks.backlog[live.at] -= tokens

    def _read(self, live: _Live, sign: float) -> None:
        if live.at >= 0 and len(live.factors):
            engine = int(self.pool.ranks.engine[live.at])
            kernels.read(self.pool.ranks, self.tables.tables, engine, live.factors, sign)


def _compile() -> None:
    """Compile now, or load what was compiled before: no request should have to wait for it."""
    some = Scheduler([Engine("", 1)], Costs(0.0, 0.0, 0.0))
    some.ended(some.choose(Request(None, 1, 1)), 1)
    some.choose_many(Batch(np.zeros(1, np.int64), np.ones(1, np.int64), np.ones(1, np.int64)))


_compile()
