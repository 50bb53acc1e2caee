"""What clients and engines see of an Envoy that asks a picker."""

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
    asked,
    completion,
    run,
    until,
)
from tests.controller.router.picker.tiny_gateway import (
    BUFFERED,
    NONE,
    STREAMED,
    a_port,
    config,
    envoy,
    filters,
    gateway,
    needs_envoy,
    picking,
)

pytestmark = needs_envoy
NEXT = text_of(tokens_after(PROMPT, 8))
WAYS: list[dict[str, str]] = [
    {},
    {"request_body_mode": BUFFERED, "response_body_mode": STREAMED},
    {"request_body_mode": BUFFERED, "response_body_mode": BUFFERED},
]
UNSEEN = {"request_body_mode": BUFFERED, "response_body_mode": NONE}
each_way = pytest.mark.parametrize("modes", WAYS, ids=["both at once", "streamed", "buffered"])


async def streaming(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Of a conversation, once the first event came; the engine's gate keeps the others."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    messages = [{"role": "user", "content": "hello"}]
    body = json.dumps({"stream": True, "messages": messages}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readuntil(b'"assistant"')
    return reader, writer


@each_way
@run
async def test_a_request_reaches_the_rank_that_was_chosen(modes: dict[str, str]) -> None:
    engine = Engine(ranks=(0, 1))
    async with gateway(engine, modes=modes) as here:
        here.scheduler.load["engine-1", 0] = 1
        body = json.dumps(completion(unknown=[1e3])).encode()
        answer = await asyncio.to_thread(asked, here.port, "POST", COMPLETIONS + "?a=b", body)
        assert (answer.status, answer.data["choices"][0]["text"]) == (200, NEXT)
        seen = engine.asked[0]
        assert (seen.rank, seen.path, seen.body) == ("1", COMPLETIONS + "?a=b", body)
        [request] = here.scheduler.requests
        assert request.tokens is not None
        assert (request.tokens.tolist(), request.length, request.most) == (PROMPT, 3, 8)
    assert here.scheduler.ended_with == [8]  # as usage tells


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@each_way
@run
async def test_a_stream_is_passed_on_and_its_tokens_count(modes: dict[str, str], path: str) -> None:
    engine = Engine()
    async with gateway(engine, modes=modes) as here:
        messages = [{"role": "user", "content": "hello"}]
        body = completion(stream=True, stream_options={"include_usage": True}, messages=messages)
        answer = await ask(here.port, path, body)
        prompt = PROMPT if path == COMPLETIONS else [3, 4]
        assert answer.text == text_of(tokens_after(prompt, 8))
        assert answer.events[-1] == "[DONE]"
    assert here.scheduler.ended_with == [8]


@run
async def test_events_are_passed_on_while_the_engine_goes_on() -> None:
    engine = Engine(gate=asyncio.Event())
    async with gateway(engine) as here:
        reader, writer = await streaming(here.port)
        assert engine.gate is not None
        assert not here.scheduler.is_idle
        engine.gate.set()
        await reader.readuntil(b"[DONE]")
        writer.close()


@run
async def test_without_bodies_of_answers_a_request_lasts_as_long() -> None:
    engine = Engine(gate=asyncio.Event())
    async with gateway(engine, modes=UNSEEN) as here:
        asking = asyncio.create_task(ask(here.port, COMPLETIONS, completion(stream=True)))
        await until(lambda: engine.asked)
        assert not here.scheduler.is_idle
        assert engine.gate is not None
        engine.gate.set()
        assert (await asking).text == NEXT
    assert here.scheduler.ended_with == [8]  # as many as it might


@pytest.mark.parametrize("mode", [NONE, STREAMED])
@run
async def test_without_its_body_a_request_is_known_by_its_size(mode: str) -> None:
    engine = Engine(ranks=(0, 1))
    async with gateway(engine, modes={"request_body_mode": mode}) as here:
        body = json.dumps(completion(user="u" * 400)).encode()
        answer = await ask(here.port, COMPLETIONS, body)
        assert (answer.status, engine.asked[0].rank, engine.asked[0].body) == (200, "0", body)
        [request] = here.scheduler.requests
        assert (request.tokens, request.length) == (None, len(body) // 4 + 1)


@run
async def test_two_engines_share_what_comes() -> None:
    them = [Engine(gate=asyncio.Event()), Engine(gate=asyncio.Event())]
    async with gateway(*them) as here:
        stream = completion(stream=True)
        asking = [asyncio.create_task(ask(here.port, COMPLETIONS, stream)) for _ in range(6)]
        await until(lambda: sum(len(one.asked) for one in them) == 6)
        assert [len(one.asked) for one in them] == [3, 3]
        for one in them:
            assert one.gate is not None
            one.gate.set()
        assert [answer.text for answer in await asyncio.gather(*asking)] == [NEXT] * 6


@run
async def test_clients_choose_neither_engine_nor_rank() -> None:
    alone, other = Engine(), Engine(ranks=(0, 1))
    async with gateway(alone, other) as here:
        headers = {"X-data-parallel-rank": "1", "x-gateway-destination-endpoint": alone.url[7:]}
        for _ in range(2):
            here.scheduler.load["engine-1", 0] += 1
            answer = await ask(here.port, COMPLETIONS, completion(), headers)
            assert answer.status == 200
        here.scheduler.load.clear()
        await ask(here.port, COMPLETIONS, completion(), headers)
    assert [one.rank for one in other.asked] == ["0", "0"]
    assert [one.rank for one in alone.asked] == [None]


@pytest.mark.parametrize("modes", [{}, {"request_body_mode": NONE}])
@run
async def test_a_large_body_arrives_whole_and_is_not_looked_into(modes: dict[str, str]) -> None:
    engine = Engine()
    async with gateway(engine, limits=Limits(parsed_bytes=100_000), modes=modes) as here:
        body = json.dumps(completion(user="u" * 5_000_000)).encode()
        assert (await ask(here.port, COMPLETIONS, body)).status == 200
        assert engine.asked[0].body == body
        [request] = here.scheduler.requests
        assert (request.tokens, request.length) == (None, len(body) // 4 + 1)


@each_way
@run
async def test_a_body_over_the_limit_is_refused(modes: dict[str, str]) -> None:
    engine = Engine()
    async with gateway(engine, limits=Limits(request_bytes=1000), modes=modes) as here:
        answer = await ask(here.port, COMPLETIONS, completion(user="u" * 1000))
        assert (answer.status, answer.error) == (413, "a body of more than 1,000 bytes: send less")
    assert not engine.asked


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
@each_way
@run
async def test_what_is_no_json_object_is_refused(modes: dict[str, str], body: bytes) -> None:
    engine = Engine()
    async with gateway(engine, modes=modes) as here:
        answer = await ask(here.port, COMPLETIONS, body)
        assert answer.status == 400
        assert "JSON" in answer.error
    assert not [one for one in engine.seen if one.body == body]


@run
async def test_other_routes_are_not_looked_into() -> None:
    engine = Engine(ranks=(0, 1))
    async with gateway(engine) as here:
        answer = await ask(here.port, "/tokenize", b"\xff")
        assert answer.data == {"tokens": [7, 8, 9]}
    assert [one.rank for one in engine.seen if one.path == "/tokenize"] == ["0"]


@run
async def test_what_has_no_body_goes_to_any_engine_and_counts_nowhere() -> None:
    engine = Engine(ranks=(0, 1))
    async with gateway(engine) as here:
        answer = await ask(here.port, "/v1/models")
        assert answer.data["data"][0]["id"] == "tiny"
        assert not here.scheduler.requests
        models = [one for one in engine.seen if "x-request-id" in one.headers]
        assert [one.rank for one in models] == [None]


@run
async def test_without_an_engine_it_is_503_with_a_time_to_come_back() -> None:
    engine = Engine()
    async with gateway(engine) as here:
        engine.away = True
        first = await ask(here.port, COMPLETIONS, completion())
        assert first.status == 503  # the engine's own
        for path, body in ((COMPLETIONS, completion()), ("/v1/models", None)):
            answer = await ask(here.port, path, body)
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert answer.error == "no engine takes requests: try again later"
        engine.away = False
        await until(lambda: here.router.endpoints.backends)
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@run
async def test_after_an_engine_s_503_requests_go_elsewhere() -> None:
    away, other = Engine(), Engine()
    async with gateway(away, other) as here:
        away.away = True
        statuses = [(await ask(here.port, COMPLETIONS, completion())).status for _ in range(3)]
        assert statuses == [503, 200, 200]


@run
async def test_a_client_that_hangs_up_is_forgotten() -> None:
    engine = Engine(gate=asyncio.Event())
    async with gateway(engine) as here:
        for part in (1.0, 0.5):  # during the answer; during the request
            _, writer = await asyncio.open_connection("127.0.0.1", here.port)
            body = json.dumps(completion(stream=True)).encode()
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body[: int(len(body) * part)])
            await until(lambda: here.router.active)
            if part == 1:
                await until(lambda: engine.asked)
            writer.close()
            await until(lambda: not here.router.active)
        assert here.scheduler.is_idle
        assert engine.gate is not None
        engine.gate.set()
        await until(lambda: engine.hung_up)
    assert here.scheduler.ended_with == [0]


@run
async def test_an_engine_that_dies_in_a_stream_is_forgotten() -> None:
    engine = Engine(gate=asyncio.Event(), dies_after=3, dies=1)
    async with gateway(engine) as here:
        reader, writer = await streaming(here.port)
        assert engine.gate is not None
        engine.gate.set()
        assert not (await reader.read()).endswith(b"0\r\n\r\n")  # its end is missing
        writer.close()
    assert here.scheduler.is_idle


@run
async def test_without_the_picker_nothing_goes_anywhere() -> None:
    engine = Engine()
    async with engines(engine), envoy(config(a_port(), a_port())) as port:
        assert (await ask(port, COMPLETIONS, completion())).status >= 500
    assert not engine.seen


def hinted(found: dict[str, Any], *endpoints: str) -> dict[str, Any]:
    """A gateway that has chosen some already."""
    told = {"metadata_namespace": "envoy.lb.subset_hint",
            "value": {"x-gateway-destination-endpoint-subset": list(endpoints)}}  # fmt: skip
    kind = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"
    filters(found).insert(0, {
        "name": "envoy.filters.http.set_metadata",
        "typed_config": {"@type": kind, "metadata": [told]},
    })  # fmt: skip
    return found


@run
async def test_only_endpoints_of_the_gateway_s_subset_are_chosen() -> None:
    busy, free = Engine(), Engine()
    async with engines(busy, free), picking(busy, free) as here:
        here.scheduler.load["engine-1", 0] = 9
        found = config(a_port(), here.port)
        async with envoy(hinted(found, busy.url[7:], "10.0.0.1:80")) as port:
            assert (await ask(port, COMPLETIONS, completion())).status == 200
            assert (await ask(port, "/v1/models")).status == 200
        for subset in ((), ("10.0.0.1:80",)):
            found = config(a_port(), here.port)
            async with envoy(hinted(found, *subset)) as port:
                answer = await ask(port, COMPLETIONS, completion())
                assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert (len(busy.asked), len(free.asked)) == (1, 0)


@run
async def test_the_endpoint_is_told_as_metadata_too() -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here:
        found = config(a_port(), here.port)
        found["static_resources"]["clusters"][1]["original_dst_lb_config"] = {
            "metadata_key": {
                "key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]
            }
        }  # fmt: skip
        async with envoy(found) as port:
            assert (await ask(port, COMPLETIONS, completion())).status == 200


@run
async def test_the_rank_alone_is_set_where_the_gateway_chooses_the_engine() -> None:
    engine = Engine(ranks=(0, 1))
    async with engines(engine), picking(engine, only_rank=True) as here:
        here.scheduler.load["engine-1", 0] = 1
        found = config(a_port(), here.port)
        asked_for, ours = found["static_resources"]["clusters"]
        place = {"socket_address": {"address": "127.0.0.1", "port_value": engine.port}}
        ends = [{"endpoint": {"address": place}}]
        load = {"cluster_name": ours["name"], "endpoints": [{"lb_endpoints": ends}]}
        fixed = {"name": ours["name"], "type": "STATIC", "load_assignment": load}
        found["static_resources"]["clusters"] = [asked_for, fixed]
        async with envoy(found) as port:
            assert (await ask(port, COMPLETIONS, completion())).status == 200
            assert (await ask(port, "/v1/models")).status == 200
            [seen] = engine.asked
            assert seen.rank == "1"
            assert "x-gateway-destination-endpoint" not in seen.headers
            engine.away = True
            assert (await ask(port, COMPLETIONS, completion())).status == 503
            engine.away = False  # though the picker knows of no engine yet, that is not its matter
            assert (await ask(port, COMPLETIONS, completion())).status == 200
