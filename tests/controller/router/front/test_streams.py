"""Streams that are cut, that nobody reads, or nobody wants any more."""

import asyncio
import json
from typing import Any

import pytest

from controller.router.shared.settings import Limits
from tests.controller.router.front.tiny_engine import Engine, engines, text_of, tokens_after
from tests.controller.router.front.tiny_front import (
    CHAT,
    COMPLETIONS,
    PROMPT,
    ask,
    completion,
    events,
    fronted,
    greedy,
    raw,
    run,
    text_in,
    until,
)

MESSAGES = [{"role": "user", "content": "hello"}]
CONVERSATION = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "stream": True}


def dying(after: int = 3, times: int = 1) -> Engine:
    return Engine(dies=times, dies_after=after)


@pytest.mark.parametrize("after", [0, 1, 5, 7])
@pytest.mark.parametrize("more", [{}, {"temperature": 0.8, "seed": 7}])
@run
async def test_a_cut_stream_goes_on_elsewhere_as_if_nothing_had_happened(
    after: int, more: dict[str, Any]
) -> None:
    first, second = dying(after), Engine()
    async with engines(first, second), fronted(first, second) as here:
        answer = await ask(here.port, COMPLETIONS, greedy(**more))
        assert answer.text == text_of(tokens_after(PROMPT, 8))
        told = answer.events
        assert told[-1] == "[DONE]"
        assert [one["choices"][0]["finish_reason"] for one in told[:-1]] == [None] * 7 + ["length"]
        names = {(one["id"], one["object"], one["created"]) for one in told[:-1]}
        assert len(names) == 1
        assert {one["choices"][0].get("token_ids") for one in told[:-1]} == {None}
    went_on = second.asked[0].data
    assert went_on["prompt"] == [*PROMPT, *tokens_after(PROMPT, after)][: len(PROMPT) + after]
    if after:
        assert went_on["max_tokens"] == 8 - after
        assert went_on.get("seed") == more.get("seed")


@run
async def test_a_conversation_goes_on_as_a_conversation() -> None:
    first, second = dying(), Engine()
    async with engines(first, second), fronted(first, second) as here:
        answer = await ask(here.port, CHAT, CONVERSATION | {"temperature": 0})
        told = answer.events[:-1]
        assert answer.text == text_of(tokens_after([3, 4], 8))
        assert {one["object"] for one in told} == {"chat.completion.chunk"}
        assert all("delta" in choice and "text" not in choice
                   for one in told for choice in one["choices"])  # fmt: skip
    assert second.asked[0].path == COMPLETIONS
    assert second.asked[0].data["prompt"] == [3, 4, *tokens_after([3, 4], 3)]
    assert "messages" not in second.asked[0].data


@run
async def test_without_a_limit_a_conversation_goes_on_to_the_model_s() -> None:
    first, second = dying(), Engine(longest=10)
    first.longest = 10
    body = CONVERSATION | {"temperature": 0}
    del body["max_tokens"]
    async with engines(first, second), fronted(first, second) as here:
        await ask(here.port, CHAT, body)
    assert second.asked[0].data["max_tokens"] == 10 - 2 - 3


@run
async def test_a_stream_that_is_cut_twice_goes_on_twice() -> None:
    first, second, third = dying(3), dying(2), Engine()
    async with engines(first, second, third), fronted(first, second, third) as here:
        answer = await ask(here.port, COMPLETIONS, greedy())
        assert answer.text == text_of(tokens_after(PROMPT, 8))
    assert third.asked[0].data["prompt"] == [*PROMPT, *tokens_after(PROMPT, 5)]


@run
async def test_usage_counts_both_parts() -> None:
    first, second = dying(), Engine()
    async with engines(first, second), fronted(first, second) as here:
        body = greedy(stream_options={"include_usage": True})
        answer = await ask(here.port, COMPLETIONS, body)
        used = answer.events[-2]["usage"]
        assert used == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}


@run
async def test_ids_of_tokens_are_told_to_whoever_asked_for_them() -> None:
    first, second = dying(), Engine()
    async with engines(first, second), fronted(first, second) as here:
        answer = await ask(here.port, COMPLETIONS, greedy(return_token_ids=True))
        ids = [one["choices"][0]["token_ids"][0] for one in answer.events[:-1]]
        assert ids == tokens_after(PROMPT, 8)


@pytest.mark.parametrize(
    "more",
    [{}, {"temperature": 0, "stop": "x"}, {"temperature": 0, "logprobs": 1},
     {"temperature": 0, "n": 2}, {"temperature": 0, "presence_penalty": 1.0},
     {"temperature": 0, "response_format": {"type": "json_object"}},
     {"temperature": 0, "return_token_ids": False}],
)  # fmt: skip
@run
async def test_one_that_could_not_go_on_unnoticed_ends_with_an_error(more: dict[str, Any]) -> None:
    first, second = dying(), Engine()
    async with engines(first, second), fronted(first, second) as here:
        answer = await ask(here.port, COMPLETIONS, completion(stream=True, **more))
        assert answer.status == 200
        *told, error, done = answer.events
        assert text_in(told) == text_of(tokens_after(PROMPT, 3))
        assert (error["error"]["code"], error["error"]["type"]) == (502, "server_error")
        assert done == "[DONE]"
        text = (await ask(here.port, "/metrics")).body.decode()
        assert 'placer_front_cut_streams_total{outcome="ended"} 1.0' in text
    assert not second.asked


@run
async def test_an_error_of_the_engine_s_in_a_stream_is_a_cut() -> None:
    first, second = Engine(fault_after=3), Engine()
    async with engines(first, second), fronted(first, second) as here:
        answer = await ask(here.port, COMPLETIONS, greedy())
        assert answer.text == text_of(tokens_after(PROMPT, 8))
        assert b"EngineDead" not in answer.body


@run
async def test_while_no_engine_is_there_a_cut_stream_waits() -> None:
    engine = dying()
    async with engines(engine), fronted(engine) as here:
        engine.gate = asyncio.Event()
        asking = asyncio.create_task(ask(here.port, COMPLETIONS, greedy()))
        await until(lambda: engine.asked)
        engine.away = True
        engine.gate.set()
        await until(lambda: here.front.router.held)
        engine.away = False
        assert (await asking).text == text_of(tokens_after(PROMPT, 8))


@run
async def test_one_that_waits_in_vain_ends_with_an_error() -> None:
    engine = dying()
    async with engines(engine), fronted(engine, limits=Limits(hold_s=0.4)) as here:
        engine.gate = asyncio.Event()
        asking = asyncio.create_task(ask(here.port, COMPLETIONS, greedy()))
        await until(lambda: engine.asked)
        engine.away = True
        engine.gate.set()
        answer = await asking
        assert "no engine" in answer.events[-2]["error"]["message"]


@run
async def test_a_client_that_hangs_up_ends_the_work_of_the_engine() -> None:
    engine = Engine()
    engine.gate = asyncio.Event()
    async with engines(engine), fronted(engine) as here:
        body = json.dumps(completion(stream=True)).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
                     % (len(body), body))  # fmt: skip
        await until(lambda: engine.asked)
        writer.close()
        await until(lambda: here.scheduler.is_idle)
        engine.gate.set()
        await until(lambda: engine.hung_up)
        text = (await ask(here.port, "/metrics")).body.decode()
        assert 'error_type="client"' in text


@run
async def test_a_client_that_does_not_read_stops_the_engine_and_not_the_front() -> None:
    """Of 200 MB no more than buffers hold leave the engine, until the client is given up."""
    piece = b"data: {}\n\n" * 100_000
    sent = 0

    class Flood(Engine):
        async def _stream(self, seen: Any, writer: Any, *more: Any) -> None:
            nonlocal sent
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                         b"transfer-encoding: chunked\r\n\r\n")  # fmt: skip
            for _ in range(200):
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                sent += len(piece)

    engine = Flood()
    async with engines(engine), fronted(engine, limits=Limits(stall_s=1.0)) as here:
        body = json.dumps(completion(stream=True)).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", here.port, limit=1024)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
                     % (len(body), body))  # fmt: skip
        await until(lambda: here.front.router.active)
        assert (await ask(here.port, "/health")).status == 200
        await until(lambda: not here.front.router.active)  # stall_s
        assert sent < 60e6
        writer.close()


@run
async def test_an_answer_in_many_pieces_arrives_whole() -> None:
    body = json.dumps({"x": "y" * 3_000_000}).encode()
    engine = Engine(raw=b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    async with engines(engine), fronted(engine) as here:  # 1 MiB is kept back
        assert (await ask(here.port, COMPLETIONS, completion())).body == body


@run
async def test_a_long_answer_that_is_cut_is_seen_to_be() -> None:
    body = b"y" * 3_000_000
    engine = Engine(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + body)
    async with engines(engine), fronted(engine) as here:
        sent = json.dumps(completion()).encode()
        data = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(sent)
        answer = await raw(here.port, data + sent)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert not answer.endswith(b"0\r\n\r\n")
        assert len(engine.asked) == 1


@run
async def test_an_event_without_end_is_no_event() -> None:
    flood = b"data: " + b"y" * 100_000
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    engine = Engine(raw=head + b"%x\r\n%b\r\n" % (len(flood), flood))
    async with engines(engine), fronted(engine, limits=Limits(event_bytes=10_000)) as here:
        answer = await ask(here.port, COMPLETIONS, completion(stream=True))
        assert answer.status == 502


def test_events_are_read_one_by_one() -> None:
    assert events(b'data: {"a": 1}\n\ndata: [DONE]\n\n') == [{"a": 1}, "[DONE]"]
