import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.router.scheduling.decide import SCHEDULERS, NoRankError
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Request
from controller.router.scheduling.scheduler import KEPT, Batch, Scheduler
from placer.cost.requests import Costs
from tests.controller.router.scheduling.tiny_requests import (
    SECOND_EACH,
    a_lookup,
    a_request,
    a_scheduler,
    of_kinds,
    own_ranks,
)

prompts = st.lists(st.lists(st.integers(-1, 5), min_size=1, max_size=9), min_size=1, max_size=30)


@given(prompts, st.sampled_from(sorted(SCHEDULERS)), st.integers(0, 3))
def test_many_at_once_are_chosen_as_one_after_another(
    every: list[list[int]], name: str, most: int
) -> None:
    batch = Batch(
        np.concatenate(every), np.array([len(one) for one in every]), np.full(len(every), most)
    )
    one_by_one, at_once = a_scheduler(3, 2, name=name), a_scheduler(3, 2, name=name)
    single = [one_by_one.choose(a_request(*one, most=most)) for one in every]
    assert at_once.choose_many(batch) == single
    assert [str(one.why) for one in at_once.choose_many(batch)] == [
        str(one_by_one.choose(a_request(*one, most=most)).why) for one in every
    ]


@given(prompts, st.integers(1, 3))
def test_many_at_once_choose_engines_alike(every: list[list[int]], most: int) -> None:
    lookup, _ = of_kinds(4)
    batch = Batch(
        np.concatenate(every), np.array([len(one) for one in every]), np.full(len(every), most)
    )
    pool = [Engine("a", 1), Engine("b", 1), Engine("c", 1)]
    one_by_one, at_once = (Scheduler(pool, SECOND_EACH, lookup) for _ in range(2))
    single = [one_by_one.choose(a_request(*one, most=most)) for one in every]
    assert at_once.choose_many(batch) == single


@given(prompts, st.sampled_from(sorted(SCHEDULERS)), st.sets(st.integers(0, 5), min_size=1))
def test_among_some_ranks_is_as_if_no_other_took_requests(
    every: list[list[int]], name: str, some: set[int]
) -> None:
    whole, apart = a_scheduler(3, 2, name=name), a_scheduler(3, 2, name=name)
    among = [whole.pool.places[at] for at in some]
    apart.pool.ranks.open[:] = [place in among for place in apart.pool.places]
    for one in every:
        assert whole.choose(a_request(*one), among) == apart.choose(a_request(*one))
    assert whole.pool.ranks.open.all()


def test_among_no_rank_there_is_none() -> None:
    with pytest.raises(NoRankError):
        a_scheduler(1, 2).choose(a_request(1), [])


@given(prompts, st.data())
def test_what_is_chosen_is_what_was_decided(every: list[list[int]], data: st.DataObject) -> None:
    """While requests end, in any order, having generated anything."""
    scheduler = a_scheduler(2, 2)
    live = []
    for one in every:
        request = a_request(*one, most=5, prefix=one[:1])
        expected = scheduler.decide(request)
        found = scheduler.choose(request)
        assert (found.engine, found.rank, found.why) == (
            expected.engine,
            expected.rank,
            expected.why,
        )
        live.append(found)
        if data.draw(st.booleans()):
            ended = live.pop(data.draw(st.integers(0, len(live) - 1)))
            scheduler.ended(ended, data.draw(st.integers(0, 5)))


@given(prompts, st.sampled_from(sorted(SCHEDULERS)), st.data())
def test_what_ended_leaves_nothing_behind(
    every: list[list[int]], name: str, data: st.DataObject
) -> None:
    scheduler = a_scheduler(3, name=name)
    decisions = [scheduler.choose(a_request(*one, most=4)) for one in every]
    for one in decisions:
        if data.draw(st.booleans()):
            scheduler.began(one)
            scheduler.generated(one, data.draw(st.integers(0, 6)))
    for one in decisions:
        scheduler.ended(one)
        scheduler.ended(one)  # says nothing new
    np.testing.assert_allclose(scheduler.pool.ranks.backlog, 0, atol=1e-9)
    np.testing.assert_allclose(scheduler.pool.ranks.held, 0, atol=1e-9)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=6, max_size=6),
    st.integers(0, 2**31),
)
def test_wrong_tables_change_where_requests_go_but_not_how_many_tokens_ranks_get(
    shares: list[list[float]], seed: int
) -> None:
    """Whatever they say, no rank gets more than the mean and a few requests."""
    scheduler = Scheduler([Engine("e0", 4)], SECOND_EACH, a_lookup(shares))
    rng, tokens = np.random.default_rng(seed), np.zeros(4)
    for _ in range(800):
        prompt = rng.integers(0, 5, size=rng.integers(1, 20))
        found = scheduler.choose(a_request(*prompt))
        scheduler.began(found)
        scheduler.ended(found, 0)
        tokens[found.rank] += len(prompt)
    assert tokens.max() - tokens.mean() <= 5 * 20


def test_a_request_weighs_less_as_it_is_served() -> None:
    """4 tokens of prompt and at most 6 more: 10 at first, 6 once it began, 4 after two, and what
    comes beyond what was expected counts for nothing."""
    scheduler = a_scheduler()
    one = scheduler.choose(a_request(1, 1, 1, 1, most=6))
    backlog = scheduler.pool.ranks.backlog
    assert backlog.tolist() == [0, 10]
    scheduler.began(one)
    assert backlog.tolist() == [0, 6]
    scheduler.generated(one, 2)
    assert backlog.tolist() == [0, 4]
    scheduler.generated(one, 9)
    assert backlog.tolist() == [0, 0]


def test_requests_are_expected_to_generate_as_many_as_others_did() -> None:
    """2 and 4, and so 3; on rank 0, where both were, a thirtieth more: 4 is a third more than 3,
    and weighs as much as one request of 10."""
    scheduler = a_scheduler()
    for generated in (2, 4):
        scheduler.ended(scheduler.choose(a_request(0, most=100)), generated)
    backlog, of_rank = scheduler.pool.ranks.backlog, (3.1, 3.0)
    for first in (0, 1):
        rank = scheduler.choose(a_request(first, most=100)).rank
        assert backlog[rank] == pytest.approx(1 + of_rank[rank])
        scheduler.choose(a_request(first, most=1))
    assert backlog.sum() == pytest.approx(2 * 1 + 6.1 + 2 * 2)


def test_a_rank_whose_requests_generate_more_gets_fewer_of_them() -> None:
    """Whoever begins with token 1 generates 30, and others 10: rank 1 gets half of the tokens."""
    scheduler, rng, tokens, requests = a_scheduler(), np.random.default_rng(0), [0, 0], [0, 0]
    for kind in rng.integers(2, size=800).tolist():
        found, generated = scheduler.choose(a_request(kind, most=100)), (10, 30)[kind]
        scheduler.ended(found, generated)
        tokens[found.rank] += 1 + generated
        requests[found.rank] += 1
    assert max(tokens) / sum(tokens) < 0.51
    assert scheduler.pool.ranks.longer[1] > 1.2 > 1 > scheduler.pool.ranks.longer[0]
    assert requests[1] < 0.45 * sum(requests)


def test_a_rank_whose_requests_ended_early_is_owed_the_difference() -> None:
    """9 tokens were expected and 2 came: half of them more than the mean of two ranks."""
    scheduler = a_scheduler()
    one = scheduler.choose(a_request(0, 0, most=7))
    ahead = scheduler.pool.ranks.ahead
    assert ahead[one.rank] - ahead.mean() == 4.5
    scheduler.ended(one, 1)
    assert ahead[one.rank] == 1.5
    assert ahead.sum() == 0


def test_a_request_that_never_began_costs_its_rank_nothing() -> None:
    scheduler = a_scheduler()
    scheduler.ended(scheduler.choose(a_request(0, 0, 0, most=8)), 0)
    np.testing.assert_allclose(scheduler.pool.ranks.ahead, 0)


def test_prices_are_those_at_which_the_requests_that_come_fill_all_ranks_alike() -> None:
    """Of four requests three like rank 0 best: one gains 0.9 more there, one 0.5 and one 0.1, and
    the fourth 0.5 less. So the two that gain most go to rank 0, at a price between 0.1 and 0.5."""
    gains = [0.95, 0.75, 0.55, 0.25]
    tables = a_lookup([*([gain, 1 - gain] for gain in gains), [0.5, 0.5]])
    scheduler = Scheduler([Engine("e0", 2)], SECOND_EACH, tables)
    lots, found = np.random.default_rng(0), np.zeros((4, 2))
    for at in range(2000):
        kind = int(lots.integers(4))
        one = scheduler.choose(a_request(kind))
        scheduler.ended(one, 0)
        if at >= 1000:
            found[kind, one.rank] += 1
    dear = scheduler.pool.ranks.dear
    assert 0.1 < dear[0] - dear[1] < 0.5
    share = found[:, 0] / found.sum(axis=1)
    assert share[0] > 0.9
    assert share[1] > 0.75
    assert share[2] < 0.25
    assert share[3] < 0.1


def test_at_a_windows_end_all_ranks_got_as_many() -> None:
    """Of requests of one length that all gain most on rank 1: 8 for each of 3 ranks in 24."""
    scheduler = a_scheduler(3)
    for _ in range(5):
        found = [scheduler.choose(a_request(1, 1)).rank for _ in range(24)]
        assert np.bincount(found, minlength=3).tolist() == [8, 8, 8]


def test_where_nothing_is_known_and_nothing_waits_ranks_take_turns() -> None:
    scheduler, found = Scheduler([Engine("e0", 3)], Costs(1e-6, 1e-6, 1e-6)), []
    for _ in range(6):
        found.append(scheduler.choose(Request(None, 5, 0)))
        scheduler.began(found[-1])
        scheduler.ended(found[-1], 0)
    assert [sorted(one.rank for one in found[at : at + 3]) for at in (0, 3)] == [[0, 1, 2]] * 2


def test_a_rank_that_is_far_behind_gets_less() -> None:
    """40 requests wait at rank 1, 20 more than in the mean: 12 more than a window's 8, as if it had
    got those already. So 14 of the next 16 go to rank 0."""
    scheduler = a_scheduler(2)
    for _ in range(16):
        scheduler.ended(scheduler.choose(a_request(1)), 0)
    scheduler.hear({("e0", 1): 40.0})
    found = [scheduler.choose(a_request(1)) for _ in range(16)]
    assert [one.rank for one in found].count(0) == 14


def test_the_prefix_goes_where_it_was() -> None:
    """Blocks of 2 tokens, none of which says anything of ranks."""
    scheduler = Scheduler([Engine("e0", 3)], SECOND_EACH, own_ranks(3), block_tokens=2)
    other = Request(None, 6, 0, (8, 9))
    scheduler.choose(other)
    first = scheduler.choose(Request(None, 6, 0, (1, 2, 3)))
    assert (first.rank, first.why.cached) == (1, 0)
    again = scheduler.choose(Request(None, 6, 0, (1, 2, 4)))
    assert (again.rank, again.why.cached) == (1, 4)


def test_engines_come_and_go_and_what_was_learnt_of_the_others_stays() -> None:
    scheduler = a_scheduler(2, 2)
    decisions = [scheduler.choose(a_request(1, 1, 1, prefix=(one,))) for one in range(4)]
    ranks = scheduler.pool.ranks
    of_e1 = [getattr(ranks, name)[2:].copy() for name in KEPT]
    scheduler.see([Engine("e1", 2), Engine("e2", 2)])
    ranks = scheduler.pool.ranks
    for name, was in zip(KEPT, of_e1, strict=True):
        np.testing.assert_array_equal(getattr(ranks, name)[:2], was)
    assert ranks.backlog[2:].tolist() == [0, 0]
    for one in decisions:
        scheduler.ended(one, 0)
    np.testing.assert_allclose(ranks.backlog, 0)


def test_the_round_mask_uses_every_rank_once_a_round() -> None:
    scheduler = a_scheduler(3, name="round_mask")
    found = [scheduler.choose(a_request(1)).rank for _ in range(9)]
    assert [sorted(found[at : at + 3]) for at in (0, 3, 6)] == [[0, 1, 2]] * 3


def test_eldr_takes_the_least_loaded_of_those_that_are_nearly_as_similar() -> None:
    """Of one token ranks 0 and 1 are alike within the band of 5%, rank 2 is not."""
    tables = a_lookup([[0.96, 1.0, 0.9], [0, 0, 0]])
    scheduler = Scheduler([Engine("e0", 3)], SECOND_EACH, tables, "eldr")
    assert [scheduler.choose(a_request(0)).rank for _ in range(4)] == [0, 1, 0, 1]


STREAM = """
import sys
if "plain" in sys.argv:
    sys.modules["numba"] = None
import numpy as np
from tests.controller.router.scheduling.tiny_requests import a_request, a_scheduler, of_kinds
from controller.router.scheduling.pool import Engine
rng = np.random.default_rng(0)
ranks, engines = a_scheduler(4), a_scheduler(1, 3)
engines.see([Engine(f"e{one}", 1) for one in range(3)], of_kinds(4)[0])
for _ in range(300):
    request = a_request(*rng.integers(-1, 6, size=rng.integers(1, 20)), most=int(rng.integers(9)))
    for scheduler in (ranks, engines):
        found = scheduler.choose(request)
        print(found.engine, found.rank, found.why)
        if rng.random() < 0.8:
            scheduler.ended(found, int(rng.integers(9)))
"""


def test_without_numba_the_same_is_decided() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", STREAM, *how], capture_output=True, text=True, check=True
        ).stdout
        for how in ([], ["plain"])
    ]
    assert said[0] == said[1]
    assert said[0].count("\n") == 600
