"""A rank is chosen by a header or by an address, and never one taken for another."""

from collections.abc import Sequence

import pytest

from controller.router.shared.settings import Limits
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    ask,
    completion,
    fronted,
    run,
    until,
)


async def spread(port: int, count: int = 8) -> None:
    for _ in range(count):
        assert (await ask(port, COMPLETIONS, completion())).status == 200


def headers_of(*them: Engine) -> list[str | None]:
    return [one.rank for engine in them for one in engine.asked]


@run
async def test_internal_load_balancing_takes_the_engine_s_rank() -> None:
    engine = Engine(ranks=(0, 1, 2, 3))
    async with engines(engine), fronted(engine) as here:
        here.scheduler.load.update({("engine-1", rank): rank == 2 and -5 for rank in range(4)})
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200
    assert headers_of(engine) == ["2"]


@pytest.mark.parametrize(("header", "names"), [("local", ["0", "1"]), ("global", ["2", "3"])])
@run
async def test_hybrid_load_balancing_is_asked_whose_numbers_it_takes(
    header: str, names: Sequence[str]
) -> None:
    """Ranks 2 and 3 stand behind the second address: Python's frontend calls them 0 and 1, others
    by the engine's numbers."""
    first, second = Engine(ranks=(0, 1), header=header), Engine(ranks=(2, 3), header=header)
    async with engines(first, second), fronted([first, second]) as here:
        for rank in (2, 3):
            here.scheduler.load.clear()
            here.scheduler.load["engine-1", rank] = -5
            assert (await ask(here.port, COMPLETIONS, completion())).status == 200
    assert headers_of(second) == names
    assert headers_of(first) == []


@run
async def test_a_server_with_words_of_its_own_is_asked_by_trying() -> None:
    """Its refusals tell no range: number 3 it takes, so these are the engine's numbers."""
    engine = Engine(ranks=(2, 3), header="global")
    engine._wrong_rank = lambda told: (  # type: ignore[method-assign]
        b'{"error": {"message": "bad rank", "code": 400}}' if told not in (None, "2", "3") else b""
    )
    async with engines(engine), fronted(engine) as here:
        here.scheduler.load["engine-1", 3] = -5
        await spread(here.port, 1)
    assert headers_of(engine) == ["3"]


@run
async def test_external_load_balancing_needs_no_header_but_the_port() -> None:
    endpoints = [Engine(ranks=(rank,)) for rank in range(3)]
    async with engines(*endpoints), fronted(endpoints) as here:
        for rank in (2, 0, 1):
            here.scheduler.load.clear()
            here.scheduler.load["engine-1", rank] = -5
            assert (await ask(here.port, COMPLETIONS, completion())).status == 200
            assert len(endpoints[rank].asked) == 1
    assert headers_of(*endpoints) == [None] * 3


@run
async def test_a_server_that_ignores_the_header_balances_itself() -> None:
    engine = Engine(ranks=(0, 1, 2), header="ignored")
    async with engines(engine), fronted(engine) as here:
        await spread(here.port, 2)
        assert [one.ranks for one in here.scheduler.engines] == [1]
    assert headers_of(engine) == [None, None]


@run
async def test_a_server_that_says_one_thing_and_takes_another_balances_itself() -> None:
    """Its metrics tell of ranks 0 to 3, its refusals of 0 and 1."""
    engine = Engine(ranks=(0, 1, 2, 3))
    engine._wrong_rank = lambda told: (  # type: ignore[method-assign]
        b'{"error": {"message": "rank is out of range [0, 2)", "code": 400}}'
        if told is not None and int(told) > 1
        else b""
    )
    async with engines(engine), fronted(engine) as here:
        await spread(here.port, 2)
    assert headers_of(engine) == [None, None]


@pytest.mark.parametrize("stream", [False, True])
@run
async def test_a_rank_that_vanishes_between_decision_and_request_costs_nothing(
    stream: bool,
) -> None:
    engine = Engine(ranks=(0, 1, 2, 3))
    async with engines(engine), fronted(engine) as here:
        here.scheduler.load["engine-1", 3] = -5
        engine.ranks = (0, 1)  # and nobody has said so
        answer = await ask(here.port, COMPLETIONS, completion(stream=stream))
        assert answer.status == 200
        assert b"error" not in answer.body
        await until(lambda: here.scheduler.engines[0].ranks == 2)
    assert headers_of(engine)[0] == "3"
    assert headers_of(engine)[-1] in ("0", "1")


@run
async def test_a_width_that_changes_unasked_is_noticed() -> None:
    engine = Engine(ranks=(0, 1))
    async with engines(engine), fronted(engine) as here:
        engine.ranks = (0, 1, 2, 3)
        await until(lambda: here.scheduler.engines[0].ranks == 4)


@run
async def test_an_engine_that_refuses_the_rank_it_tells_of_is_believed_at_last() -> None:
    engine = Engine(ranks=(0, 1))
    async with engines(engine), fronted(engine, limits=Limits(hold_s=5.0)) as here:
        engine.error = (400, b'{"error": {"message": "rank 0 is out of range", "code": 400}}')
        answer = await ask(here.port, COMPLETIONS, completion())
        assert answer.status == 400
        assert "out of range" in answer.data["error"]["message"]
        engine.error = None
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@run
async def test_two_fronts_see_each_other_s_requests_in_what_the_engine_tells() -> None:
    """Rank 0 has six requests of another front: this one's next six go to rank 1."""
    engine = Engine(ranks=(0, 1), load={0: 6, 1: 0})
    async with engines(engine), fronted(engine) as here:
        await until(lambda: here.scheduler.others.get(("engine-1", 0)) == 6)
        await spread(here.port, 6)
    assert set(headers_of(engine)) == {"1"}


@run
async def test_a_front_s_own_requests_are_not_taken_for_another_s() -> None:
    engine = Engine(ranks=(0,), load={0: 1})
    async with engines(engine), fronted(engine) as here:
        endpoint = here.front.router.endpoints.all[engine.url]
        endpoint.own[0] += 1  # the one that the engine tells of
        await until(lambda: here.scheduler.others.get(("engine-1", 0)) == 0)
        endpoint.own[0] -= 1
