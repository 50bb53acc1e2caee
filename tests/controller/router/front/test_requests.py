"""What a client sees of a front, and what an engine sees of a client."""

import asyncio

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
    fronted,
    run,
)

NEXT = text_of(tokens_after(PROMPT, 8))
MESSAGES = [{"role": "user", "content": "hello"}]


@run
async def test_a_completion_is_the_engine_s() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, COMPLETIONS, completion())
        assert (answer.status, answer.data["choices"][0]["text"]) == (200, NEXT)
        assert here.scheduler.requests[0].tokens.tolist() == PROMPT  # type: ignore[union-attr]
        assert (here.scheduler.requests[0].length, here.scheduler.requests[0].most) == (3, 8)
    assert here.scheduler.ended_with == [8]  # as usage tells


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@run
async def test_a_stream_is_passed_on_event_by_event(path: str) -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        body = completion(stream=True) | {"messages": MESSAGES}
        answer = await ask(here.port, path, body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        prompt = PROMPT if path == COMPLETIONS else [3, 4]
        assert answer.text == text_of(tokens_after(prompt, 8))
        assert answer.events[-1] == "[DONE]"


@run
async def test_what_was_sent_reaches_the_engine_unchanged() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        body = b'{ "prompt" :[5,6, 7],"max_tokens":8, "unknown": {"a": [1e3]} }'
        headers = {"Authorization": "Bearer engine-key", "X-Request-Id": "r-1", "User-Agent": "t"}
        await asyncio.to_thread(asked, here.port, "POST", COMPLETIONS + "?a=b", body, headers)
        seen = engine.asked[0]
    assert (seen.body, seen.path) == (body, COMPLETIONS + "?a=b")
    assert seen.headers["authorization"] == "Bearer engine-key"
    assert seen.headers["x-request-id"] == "r-1"


@run
async def test_headers_of_the_connection_and_a_rank_of_the_client_s_choice_do_not() -> None:
    engine = Engine(ranks=(0, 1))
    async with engines(engine), fronted(engine) as here:
        headers = {"Connection": "keep-alive, X-Own", "X-Own": "1", "TE": "trailers",
                   "X-Data-Parallel-Rank": "1", "Accept-Encoding": "gzip"}  # fmt: skip
        await ask(here.port, COMPLETIONS, completion(), headers)
        seen = engine.asked[0].headers
    assert not {"connection", "x-own", "te", "accept-encoding"} & set(seen)
    assert seen["x-data-parallel-rank"] == "0"


@run
async def test_embeddings_and_models_pass_through() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, "/v1/embeddings", {"model": "tiny", "input": "x"})
        assert answer.data == {"data": [{"embedding": [0.5]}]}
        assert (await ask(here.port, "/v1/models")).data["data"][0]["id"] == "tiny"


@run
async def test_health_tells_whether_an_engine_takes_requests() -> None:
    engine = Engine(away=True)
    async with engines(engine), fronted(engine, waits=False) as here:
        assert (await ask(here.port, "/health")).status == 503
        engine.away = False
        while (await ask(here.port, "/health")).status != 200:
            await asyncio.sleep(0.05)


@run
async def test_metrics_have_the_names_of_vllm_s_router_and_of_opentelemetry() -> None:
    engine = Engine(load={0: 3})
    async with engines(engine), fronted(engine) as here:
        await ask(here.port, COMPLETIONS, completion())
        await ask(here.port, "/nothing")
        text = (await ask(here.port, "/metrics")).body.decode()
    lines = text.splitlines()
    assert (
        'http_server_request_duration_seconds_count{http_request_method="POST",'
        f'http_response_status_code="200",http_route="{COMPLETIONS}"}} 1.0'
    ) in lines
    assert f'vllm_router_requests_total{{route="{COMPLETIONS}"}} 1.0' in lines
    assert f'vllm_router_processed_requests_total{{worker="{engine.url}"}} 1.0' in lines
    assert f'vllm_router_worker_load{{worker="{engine.url}"}} 3.0' in lines
    assert 'vllm_router_request_errors_total{error_type="refused",route="other"} 1.0' in lines
    assert "vllm_router_active_workers 1.0" in lines


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", COMPLETIONS, 405), ("POST", "/health", 405),
     ("DELETE", "/v1/models", 405), ("GET", "/v1/../metrics", 404), ("HEAD", COMPLETIONS, 405)],
)  # fmt: skip
@run
async def test_other_routes_and_methods_are_refused(method: str, path: str, status: int) -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        answer = await asyncio.to_thread(asked, here.port, method, path)
        assert answer.status == status
        if method != "HEAD":
            assert answer.error


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe{}", b"{" * 5000, b"[" * 100_000, b'{"a": 1e}',
     b'{"prompt": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
@run
async def test_a_body_that_is_no_json_object_gets_400_and_no_engine_hears_of_it(
    body: bytes,
) -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        answer = await asyncio.to_thread(asked, here.port, "POST", COMPLETIONS, body)
        assert answer.status == 400
        assert "JSON" in answer.error
        assert not engine.asked
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200


@pytest.mark.parametrize("prompt", [[-1], [2**40], ["a", 1], [[]], [1.5], {}, None, [True, True]])
@run
async def test_a_prompt_that_cannot_be_scored_goes_somewhere_all_the_same(prompt: object) -> None:
    """What is wrong with it the engine says."""
    engine = Engine(error=(400, b'{"error": {"message": "no prompt", "code": 400}}'))
    async with engines(engine), fronted(engine) as here:
        answer = await ask(here.port, COMPLETIONS, completion(prompt=prompt))
        assert (answer.status, answer.data["error"]["message"]) == (400, "no prompt")


@run
async def test_a_body_that_is_too_long_to_be_looked_into_is_passed_on() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine, limits=Limits(parsed_bytes=50)) as here:
        assert (await ask(here.port, COMPLETIONS, completion(user="x" * 100))).status == 200
        assert here.scheduler.requests[0].tokens is None


@run
async def test_a_client_s_connection_serves_one_request_after_another() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        for _ in range(3):
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(size)
        writer.close()
        assert len(here.front.router.endpoints.all[engine.url].server.open) == 1
