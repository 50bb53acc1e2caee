"""Engines that change their width, die, or are not there yet: no request fails that need not."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from controller.router.shared.settings import Limits
from tests.controller.router.front.tiny_engine import Engine, engines, text_of, tokens_after
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    PROMPT,
    ask,
    asked,
    completion,
    fronted,
    run,
    until,
)

NEXT = text_of(tokens_after(PROMPT, 8))


def crowd(port: int, count: int, **more: Any) -> list[asyncio.Task[Any]]:
    body = completion(**more)
    return [
        asyncio.create_task(asyncio.to_thread(asked, port, "POST", COMPLETIONS, body))
        for _ in range(count)
    ]


@run
async def test_what_meets_503_is_held_until_the_engine_is_back() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        engine.away = True
        waiting = crowd(here.port, 4)
        await until(lambda: len(here.front.router.held) == 4)
        engine.away = False
        for answer in await asyncio.gather(*waiting):
            assert (answer.status, answer.data["choices"][0]["text"]) == (200, NEXT)
        text = (await ask(here.port, "/metrics")).body.decode()
        assert "placer_front_held_total 4.0" in text


@run
async def test_what_meets_503_goes_to_another_engine_if_there_is_one() -> None:
    first, second = Engine(), Engine()
    async with engines(first, second), fronted(first, second) as here:
        first.away = True
        for answer in await asyncio.gather(*crowd(here.port, 4)):
            assert answer.status == 200
        assert len(second.asked) == 4


@run
async def test_requests_come_before_any_engine_does() -> None:
    engine = Engine()
    async with engines(engine):
        await engine.stop()
        async with fronted(engine, waits=False) as here:
            waiting = crowd(here.port, 2)
            await until(lambda: len(here.front.router.held) == 2)
            await engine.start()
            for answer in await asyncio.gather(*waiting):
                assert answer.status == 200


@run
async def test_nobody_waits_for_ever() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine, limits=Limits(hold_s=0.5)) as here:
        engine.away = True
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "no engine" in answer.error


@run
async def test_more_than_may_wait_are_told_to_come_again() -> None:
    engine = Engine(away=True)
    limits = Limits(held=2)
    async with engines(engine), fronted(engine, limits=limits, waits=False) as here:
        waiting = crowd(here.port, 2)
        await until(lambda: len(here.front.router.held) == 2)
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        assert answer.error
        engine.away = False
        assert {one.status for one in await asyncio.gather(*waiting)} == {200}


@run
async def test_more_than_may_be_under_way_are_told_to_come_again() -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    async with engines(engine), fronted(engine, limits=Limits(requests=2)) as here:
        running = crowd(here.port, 2, stream=True)
        await until(lambda: len(engine.asked) == 2)
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        engine.gate.set()
        assert {one.status for one in await asyncio.gather(*running)} == {200}


@run
async def test_a_client_that_leaves_does_not_wait_any_more() -> None:
    engine = Engine(away=True)
    async with engines(engine), fronted(engine, waits=False) as here:
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: here.front.router.held)
        writer.close()
        await until(lambda: not here.front.router.held)


@run
async def test_an_engine_that_dies_before_it_answers_loses_nothing() -> None:
    first, second = Engine(raw=b""), Engine()
    async with engines(first, second), fronted(first, second) as here:
        answer = await ask(here.port, COMPLETIONS, completion())
        assert answer.data["choices"][0]["text"] == NEXT
        # It was asked on a connection that had been kept, which may have been closed before, and
        # then on a new one.
        assert (len(first.asked), len(second.asked)) == (2, 1)


@pytest.mark.parametrize(
    "raw",
    [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", b"\0\0\0",
     b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n",
     b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
     b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
     b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
     b"HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n",
     b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**18,
     b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
     b"5\r\ndata:"],
)  # fmt: skip
@run
async def test_garbage_is_asked_for_again_and_then_given_up(raw: bytes) -> None:
    """Two engines that answer so are enough: a third is not tried."""
    engine = Engine(raw=raw)
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, COMPLETIONS, completion())
        assert answer.status == 502
        assert "lost 2 times" in answer.error
        assert len(engine.asked) == (2 if raw else 4)  # each time first where it was asked before
        text = (await ask(here.port, "/metrics")).body.decode()
        assert f'vllm_router_retries_exhausted_total{{route="{COMPLETIONS}"}} 1.0' in text
        engine.raw = None
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@run
async def test_answers_before_the_answer_are_skipped() -> None:
    raw = (
        b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    )
    engine = Engine(raw=raw)
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.body) == (200, b"{}")
        assert "link" not in answer.headers


@run
async def test_an_answer_that_ends_with_the_connection_is_whole() -> None:
    engine = Engine(raw=b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}")
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.body) == (200, b"{}")


@run
async def test_more_than_was_asked_for_is_nobody_s_answer() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
    raw = head % 2 + b"{}" + head % 4 + b"evil"
    engine = Engine(raw=raw)
    async with engines(engine), fronted(engine) as here:
        assert (await ask(here.port, COMPLETIONS, completion())).body == b"{}"
        engine.raw = None
        assert b"evil" not in (await ask(here.port, COMPLETIONS, completion())).body


@pytest.mark.parametrize("status", [400, 404, 429, 500])
@run
async def test_what_an_engine_says_is_wrong_the_client_hears(status: int) -> None:
    engine = Engine(error=(status, b'{"error": {"message": "so it is"}}'))
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.data["error"]["message"]) == (status, "so it is")
        assert len(engine.asked) == 1


@run
async def test_a_503_that_is_the_request_s_own_is_the_client_s_at_last() -> None:
    """The engine answers all others."""
    engine = Engine(error=(503, b'{"error": {"message": "no such adapter"}}'))
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.data["error"]["message"]) == (503, "no such adapter")
        assert len(engine.asked) == 3


@run
async def test_an_engine_that_takes_too_long_is_left() -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    async with engines(engine), fronted(engine, limits=Limits(first_s=0.4)) as here:
        answer = await ask(here.port, COMPLETIONS, completion(stream=True))
        assert (answer.status, answer.error) == (504, "the engine took too long")
        engine.gate.set()
        await until(lambda: engine.hung_up)


@run
async def test_connections_that_an_engine_closed_while_they_waited_are_no_losses() -> None:
    engine = Engine()
    limits = Limits(losses=1)  # one would be told
    async with engines(engine), fronted(engine, limits=limits) as here:
        for _ in range(5):
            assert (await ask(here.port, COMPLETIONS, completion())).status == 200
            for writer in list(engine.open):
                writer.transport.abort()


@run
async def test_two_scalings_and_a_killed_engine_fail_nobody() -> None:
    first, second = Engine(), Engine()
    async with engines(first, second), fronted(first, second) as here:
        answers: list[Any] = []

        async def client(count: int) -> None:
            answers.extend([await ask(here.port, COMPLETIONS, completion()) for _ in range(count)])

        async def trouble(them: Sequence[Engine]) -> None:
            for one in them:
                one.away = True
                await asyncio.sleep(0.3)
                one.away = False
                await until(
                    lambda: all(d.is_open for d in here.front.router.endpoints.all.values())
                )
            await first.stop()

        await asyncio.gather(trouble((first, second)), *(client(40) for _ in range(5)))
        assert len(answers) == 200
        assert {one.data["choices"][0]["text"] for one in answers} == {NEXT}


@run
async def test_at_the_end_requests_under_way_are_answered_and_no_others_taken() -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    async with engines(engine), fronted(engine) as here:
        running = crowd(here.port, 1, stream=True)
        await until(lambda: engine.asked)
        drained = asyncio.create_task(here.front._drain())
        await until(lambda: here.front.service.draining)
        health = await ask(here.port, "/health")
        assert (health.status, health.data) == (503, {"status": "draining"})
        refused = await ask(here.port, COMPLETIONS, completion())
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        engine.gate.set()
        assert (await running[0]).text == NEXT
        await drained


@run
async def test_what_does_not_end_in_time_is_told_so() -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    async with engines(engine), fronted(engine, limits=Limits(drain_s=0.2)) as here:
        running = crowd(here.port, 1, stream=True)
        await until(lambda: engine.asked)
        await here.front._drain()
        answer = await running[0]
        assert (answer.status, answer.error) == (503, "this front was shut down")
