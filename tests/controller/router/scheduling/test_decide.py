from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.router.scheduling import kernels
from controller.router.scheduling.decide import NoRankError, Prices, decide
from controller.router.scheduling.lookup import WHOLE, Lookup
from controller.router.scheduling.pool import Engine, Pool, laid_out
from controller.router.scheduling.request import Request
from placer.cost.requests import Costs
from placer.errors import PlacerError
from placer.tables import Vocabulary
from tests.controller.router.scheduling.tiny_requests import (
    SECOND_EACH,
    a_request,
    a_scheduler,
    of_kinds,
    own_ranks,
)

RANKS = 3
seconds = st.floats(0, 10)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Request, Pool, Lookup, Prices, np.ndarray]:
    """Up to three engines of three ranks in any state, and any prompt of five kinds of tokens."""
    count = draw(st.integers(1, 3))
    engines = [
        Engine(
            f"e{one}",
            RANKS,
            kv_tokens=draw(st.sampled_from([None, 0, 10, 50])),
            draining=frozenset(draw(st.sets(st.integers(0, RANKS - 1), max_size=2))),
            table=draw(st.sampled_from([0, 1, None, 7])),
        )
        for one in range(count)
    ]
    share = st.lists(st.floats(0, 1), min_size=RANKS, max_size=RANKS)
    maps = [np.array(draw(st.lists(share, min_size=6, max_size=6))) for _ in range(2)]
    tables = Lookup.of(Vocabulary(np.arange(5), np.arange(5)), maps)
    pool = laid_out(engines, tables.first, tables.tables.basis)
    for array in (pool.ranks.backlog, pool.ranks.held, pool.ranks.dear, pool.ranks.given):
        array[:] = draw(st.lists(st.integers(0, 60), min_size=len(array), max_size=len(array)))
    prices = Prices.at_first(Costs(draw(seconds), draw(seconds), draw(seconds)))
    prices.fitted[kernels.TOKENS] = draw(st.integers(1, 30))
    prices.fitted[kernels.ERRORS] = draw(st.integers(0, 900))
    prices.fitted[kernels.SPAN] = draw(st.integers(0, 90))
    prices.fitted[kernels.REST] = draw(st.integers(0, 90))
    tokens = draw(st.lists(st.integers(-1, 6), max_size=20))
    request = Request(np.array(tokens, dtype=np.int64), len(tokens), draw(st.integers(0, 20)))
    cached = draw(
        st.lists(st.integers(0, len(tokens)), min_size=count * RANKS, max_size=count * RANKS)
    )
    return request, pool, tables, prices, np.array(cached, dtype=float)


def by_the_formula(
    request: Request, pool: Pool, tables: Lookup, prices: Prices, cached: np.ndarray
) -> list[float]:
    """Of each rank, in plain Python; -inf where the request may not go."""
    ranks, fitted = pool.ranks, prices.fitted
    assert request.tokens is not None
    values = tables.tables.values
    rows = [token if 0 <= token < 5 else 5 for token in request.tokens.tolist()] or [5]
    need = request.length + request.most
    # What is left of this window: as many tokens on each rank as on others at its end.
    opened = [at for at in range(len(pool.places)) if ranks.open[at]]
    each = float(fitted[kernels.TOKENS])
    span, rest = (float(fitted[at]) * each for at in (kernels.SPAN, kernels.REST))
    behind = {at: float(ranks.backlog[at] - ranks.given[at]) for at in range(len(pool.places))}
    usual = (sum(behind[at] for at in opened) + span) / len(opened)
    got = {at: float(ranks.given[at]) + max(behind[at] - usual, 0) for at in behind}
    left_of = {at: (sum(got[at] for at in opened) + rest) / len(opened) - got[at] for at in got}
    free = float(fitted[kernels.ERRORS]) ** 0.5 + 1e-6 * each
    found = []
    for at in range(len(pool.places)):
        column = int(ranks.column[at])
        share = sum(int(values[row, column]) for row in rows) / WHOLE / len(rows)
        share = 1 / RANKS if ranks.chance[at] else share
        left = need - cached[at]
        idle = ranks.backlog[at] + ranks.given[at] / kernels.MEMORY
        dear = ranks.dear[at] + kernels.LEAST_S * idle
        saved = prices.costs.local_s * left * share + prices.costs.prefill_s * cached[at]
        waits = prices.costs.local_s * (RANKS - 1) * max(left - free - left_of[at], 0)
        found.append(float(saved - left * dear - (waits if span else 0)))
    room = [float(ranks.kv[at] - ranks.held[at]) for at in range(len(found))]
    may = (
        [at for at in opened if room[at] >= need] or [at for at in opened if room[at] > 0] or opened
    )
    enough = min(free, max(left_of[at] for at in may))
    may = [at for at in may if left_of[at] >= enough - 1e-9]
    return [value if at in may else -np.inf for at, value in enumerate(found)]


@given(cases())
def test_a_decision_is_the_best_by_the_formula_of_all_that_there_are(case: tuple) -> None:  # type: ignore[type-arg]
    request, pool, tables, prices, cached = case
    found = decide(request, pool, tables, prices, cached)
    value = by_the_formula(*case)
    best, chosen = max(value), value[pool.places.index((found.engine, found.rank))]
    assert chosen == pytest.approx(best, rel=1e-9, abs=1e-9)


@given(cases())
def test_deciding_changes_nothing(case: tuple) -> None:  # type: ignore[type-arg]
    request, pool, tables, prices, cached = case
    before = [array.copy() for array in (*pool.ranks, prices.fitted)]
    decide(request, pool, tables, prices, cached)
    for was, now in zip(before, (*pool.ranks, prices.fitted), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_request_goes_where_its_tokens_have_their_experts() -> None:
    assert a_scheduler(3).choose(a_request(2, 2, 1)).rank == 2


def test_a_prefix_in_the_cache_is_worth_the_tokens_that_it_saves() -> None:
    """Rank 0 has 16 of 20 tokens: 16 s of prefill, and 4 tokens are left that gain nothing there;
    20 tokens at home on rank 1 gain 20 s. With 10 of 20 at home there, 10 s."""
    tables, pool = own_ranks(2), [Engine("e0", 2)]
    ranks, prices = laid_out(pool, tables.first, tables.tables.basis), Prices.at_first(SECOND_EACH)
    cached = np.array([16.0, 0.0])
    assert decide(a_request(*[1] * 20), ranks, tables, prices, cached).rank == 1
    halves = a_request(*[1] * 10, *[5] * 10)
    assert decide(halves, ranks, tables, prices, cached).rank == 0


def test_a_request_joins_the_engine_that_reads_its_experts_anyway() -> None:
    """Two engines, and two kinds of requests that use one expert each."""
    lookup, _ = of_kinds(2)
    scheduler = a_scheduler(1, 2)
    scheduler.see(scheduler_engines(2), lookup)
    first = [scheduler.choose(a_request(kind, most=4)).engine for kind in (0, 1)]
    assert first == ["e0", "e1"]
    again = scheduler.decide(a_request(1, most=4))
    assert again.engine == "e1"
    assert again.why.added == pytest.approx(0, abs=0.01)


def test_of_engines_that_would_read_as_much_more_the_one_with_fewer_to_wait_for_it_is_chosen() -> (
    None
):
    """And of those with as many, the one whose steps read less."""
    lookup, _ = of_kinds(3)
    pool = laid_out(scheduler_engines(2), lookup.first, lookup.tables.basis)
    prices, request = Prices.at_first(SECOND_EACH), a_request(2, most=4)
    pool.ranks.running[:], pool.ranks.reads[:] = (3, 1), (1, 1)
    assert decide(request, pool, lookup, prices).engine == "e1"
    pool.ranks.running[:], pool.ranks.reads[:] = (1, 1), (2, 1)
    assert decide(request, pool, lookup, prices).engine == "e1"


def scheduler_engines(count: int) -> list[Engine]:
    return [Engine(f"e{one}", 1) for one in range(count)]


def test_nobody_goes_where_there_is_no_room_while_another_rank_has_some() -> None:
    """Rank 1, where all of its experts are, has room for 3 tokens."""
    tables = own_ranks(2)
    pool = laid_out([Engine("e0", 2, kv_tokens=8)], tables.first, tables.tables.basis)
    prices = Prices.at_first(SECOND_EACH)
    pool.ranks.held[1] = 5
    assert decide(a_request(1, 1, 1), pool, tables, prices).rank == 1
    assert decide(a_request(1, 1, 1, 1), pool, tables, prices).rank == 0
    assert decide(a_request(1, 1, most=2), pool, tables, prices).rank == 0
    pool.ranks.held[0] = 8
    assert decide(a_request(1, 1, 1, 1), pool, tables, prices).rank == 1


def test_a_request_that_does_not_fit_is_worth_less_as_others_wait_for_its_rank() -> None:
    """60% of its experts are on rank 0, which still gets 10 tokens in this window, rank 1 gets 30.
    Of 30 tokens 20 are too many: 20 s of rank 1's to save 6. Without a window nobody waits."""
    tables = own_ranks(2)
    pool = laid_out([Engine("e0", 2)], tables.first, tables.tables.basis)
    prices = Prices.at_first(SECOND_EACH)
    long, short = (a_request(*[0, 0, 0, 1, 1] * times) for times in (6, 2))
    assert decide(long, pool, tables, prices).rank == 0
    pool.ranks.given[0] = 20
    prices.fitted[[kernels.TOKENS, kernels.SPAN, kernels.REST]] = 20, 16, 2
    assert decide(short, pool, tables, prices).rank == 0
    assert decide(long, pool, tables, prices).rank == 1


def test_a_draining_rank_is_never_chosen() -> None:
    scheduler = a_scheduler()
    scheduler.see([Engine("e0", 2, draining=frozenset({1}))])
    assert {scheduler.choose(a_request(1)).rank for _ in range(9)} == {0}
    scheduler.see([Engine("e0", 2, draining=frozenset({0, 1}))])
    with pytest.raises(NoRankError, match="none of the pool's 2 ranks takes requests: wait"):
        scheduler.choose(a_request(1))


def test_without_tokens_or_tables_the_least_loaded_is_chosen() -> None:
    scheduler = a_scheduler(3)
    unknown = Request(None, 5, 0)
    for _ in range(4):
        assert sorted(scheduler.choose(unknown).rank for _ in range(3)) == [0, 1, 2]
    scheduler.see([Engine("e0", 3, table=None)])
    assert sorted(scheduler.choose(a_request(2)).rank for _ in range(3)) == [0, 1, 2]


def test_an_unknown_scheduler_is_named() -> None:
    with pytest.raises(PlacerError, match="unknown scheduler 'elder': did you mean 'eldr'"):
        a_scheduler(name="elder")


def test_a_reason_says_what_was_weighed() -> None:
    scheduler = a_scheduler()
    request = replace(a_request(1, 1, 0, 0), prefix=(7,))
    said = str(scheduler.choose(request).why)
    assert said == (
        "seconds: 50% of its experts at home, 50% in the mean; 0 ms of a GPU saved; backlog 0, 0 "
        "tokens in the mean"
    )
