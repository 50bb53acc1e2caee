"""Malformed, ambiguous and hostile HTTP: each is answered, and the front goes on."""

import asyncio
import json
import re

import pytest

from controller.router.shared.settings import Limits
from controller.router.wire.connection import PIPELINED
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    PROMPT,
    ask,
    completion,
    fronted,
    raw,
    run,
    until,
)
from tests.controller.router.wire.corpus import BODY, CHUNKED, OTHERS, POST, REFUSED, SIZED


def told(answer: bytes) -> tuple[int, str]:
    """Status and message of the one answer that there is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    error = json.loads(body)["error"]
    return int(head.split(b" ")[1]), error["message"]


@pytest.mark.parametrize("name", REFUSED)
@run
async def test_what_two_servers_could_read_differently_is_read_by_none(name: str) -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        status, message = told(await raw(here.port, REFUSED[name]))
        assert status in (400, 505), message
        assert message
        assert not engine.asked
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@pytest.mark.parametrize("name", OTHERS)
@run
async def test_what_is_too_much_or_not_to_be_had_is_told_so(name: str) -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        status, data = OTHERS[name]
        assert told(await raw(here.port, data))[0] == status
        assert not engine.asked
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@run
async def test_a_second_request_after_a_smuggled_one_is_not_read() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        hidden = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
        data = POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%b" % (
            5 + len(hidden), hidden,
        )  # fmt: skip
        before = len(engine.seen)
        assert told(await raw(here.port, data))[0] == 400
        assert not any(one.path == COMPLETIONS for one in engine.seen[before:])


@run
async def test_chunks_and_their_extensions_are_a_body_and_trailers_no_headers() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        chunks = b"".join(
            b"%x;name=value\r\n%b\r\n" % (1, BODY[at : at + 1]) for at in range(len(BODY))
        )
        data = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        answer = await raw(here.port, data + chunks + b"0\r\nX-Trailer: 1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        seen = engine.asked[0]
    assert seen.body == BODY
    assert seen.headers["content-length"] == str(len(BODY))
    assert not {"transfer-encoding", "x-trailer"} & set(seen.headers)


@run
async def test_a_target_that_names_a_host_is_a_path_here() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        data = SIZED.replace(b"POST /", b"POST http://elsewhere:99/")
        data = data.replace(b"Host: a", b"Host: a\r\nConnection: close")
        assert (await raw(here.port, data)).startswith(b"HTTP/1.1 200 OK")
        assert engine.asked[0].path == COMPLETIONS
        assert engine.asked[0].headers["host"] == engine.url.removeprefix("http://")


@run
async def test_pipelined_requests_are_answered_in_their_order() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        close = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        nowhere = b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n"
        answer = await raw(here.port, SIZED + nowhere + SIZED + close)
        statuses = re.findall(rb"HTTP/1.1 (\d+)", answer)
        assert statuses == [b"200", b"404", b"200", b"200"]


@run
async def test_what_comes_before_garbage_is_answered_first() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        answer = await raw(here.port, SIZED + b"\0\0\0 garbage\r\n\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"400"]


@run
async def test_more_requests_sent_ahead_than_may_wait_are_refused() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        answer = await raw(here.port, SIZED * (PIPELINED + 5))
        assert answer.count(b"HTTP/1.1 200 OK") == PIPELINED + 1
        assert answer.count(b"HTTP/1.1 400") == 1
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@run
async def test_a_client_of_http_1_0_gets_the_stream_as_it_is() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        body = json.dumps(completion(stream=True)).encode()
        data = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        head, _, events = (await raw(here.port, data)).partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert events.endswith(b"data: [DONE]\n\n")
        assert events.startswith(b"data: {")


@run
async def test_whoever_expects_100_continue_gets_it() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


@run
async def test_it_gets_it_once_and_whoever_speaks_1_0_not_at_all() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        close = b"Expect: 100-continue\r\nConnection: close\r\n"
        told = await raw(here.port, SIZED.replace(b"Host: a\r\n", b"Host: a\r\n" + 2 * close))
        assert re.findall(rb"HTTP/1.1 (\d+)", told) == [b"100", b"200"]
        old = SIZED.replace(b"1.1", b"1.0").replace(b"Host: a\r\n", close)
        assert re.findall(rb"HTTP/1.1 (\d+)", await raw(here.port, old)) == [b"200"]


@run
async def test_a_body_larger_than_allowed_is_refused_while_it_comes() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine, limits=Limits(request_bytes=1000)) as here:
        chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
        assert told(await raw(here.port, CHUNKED + chunk * 20))[0] == 413
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"POST /v1/compl", 408),
        (POST, 408),
        (POST + b"Content-Length: 9\r\n\r\n{", 408),
    ],
)
@run
async def test_a_client_that_dawdles_is_told_and_left(sent: bytes, status: int | None) -> None:
    """One that sends nothing is left without a word."""
    engine = Engine()
    limits = Limits(head_s=0.3, body_s=0.3, idle_s=0.3)
    async with engines(engine), fronted(engine, limits=limits) as here:
        answer = await raw(here.port, sent)
        assert (told(answer)[0] if answer else None) == status
        await until(lambda: not here.front.service.connections)
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@run
async def test_slow_bytes_of_a_head_do_not_hold_a_connection_for_ever() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine, limits=Limits(head_s=0.5)) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(POST)
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.05)
        assert told(await answer)[0] == 408
        writer.close()


@run
async def test_memory_of_bodies_is_bounded_over_all_clients() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine, limits=Limits(bodies_bytes=3000)) as here:
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(POST + b"Content-Length: 5000\r\n\r\n" + b"x" * 2900)
        await until(lambda: here.front.router._bytes == 2900)
        answer = await ask(here.port, COMPLETIONS, completion(user="y" * 500))
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        writer.close()
        await until(lambda: not here.front.router._bytes)
        assert (await ask(here.port, COMPLETIONS, completion(user="y" * 500))).status == 200
        await until(lambda: not here.front.router._bytes)


@run
async def test_more_connections_than_allowed_are_told_to_come_again() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine, limits=Limits(connections=2)) as here:
        held = [await asyncio.open_connection("127.0.0.1", here.port) for _ in range(2)]
        await until(lambda: len(here.front.service.connections) == 2)
        assert told(await raw(here.port, SIZED))[0] == 429
        for _, writer in held:
            writer.close()
        await until(lambda: not here.front.service.connections)
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


def test_the_prompt_of_these_tests_is_that_of_the_others() -> None:
    assert json.loads(BODY)["prompt"] == PROMPT
