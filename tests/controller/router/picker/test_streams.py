"""A picker's gRPC streams, as other gateways than Envoy may use or misuse them."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controller.router.picker import gateway_pb2 as wire
from controller.router.picker.answer import TAIL, Answer
from controller.router.picker.service import PROCESS
from controller.router.shared.settings import Limits
from controller.server.security import Listening
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    PROMPT,
    completion,
    run,
    until,
    write,
)
from tests.controller.router.picker.tiny_gateway import Picking, a_port, picking

BODY = json.dumps(completion()).encode()
EOF = grpc.aio.EOF
RANK = "x-data-parallel-rank"


def head(length: int = len(BODY), ends: bool = False, path: str = COMPLETIONS) -> Any:
    said = wire.ProcessingRequest()
    said.request_headers.end_of_stream = ends
    for name, value in ((":method", "POST"), (":path", path), ("content-length", str(length))):
        said.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return said


def piece(body: bytes, ends: bool) -> Any:
    told = wire.HttpBody(body=body, end_of_stream=ends)
    return wire.ProcessingRequest(request_body=told)


def process(channel: Any, metadata: Any = ()) -> Any:
    """Its stream, as Envoy opens it."""
    said, answered = wire.ProcessingRequest, wire.ProcessingResponse
    opened = channel.stream_stream(PROCESS, said.SerializeToString, answered.FromString)
    return opened(metadata=metadata)


@asynccontextmanager
async def a_stream(here: Picking, *metadata: tuple[str, str]) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.port}") as channel:
        yield process(channel, metadata)


async def refusal(stream: Any, *said: Any) -> tuple[int, dict[str, str]]:
    """What it is refused with: status and headers; then the stream is at its end."""
    for one in said:
        await stream.write(one)
    told = (await stream.read()).immediate_response
    assert await stream.read() is EOF
    assert json.loads(told.body)["error"]["code"] == told.status.code
    headers = {one.header.key: one.header.raw_value.decode() for one in told.headers.set_headers}
    return told.status.code, headers


@run
async def test_a_gateway_that_tells_no_modes_sends_bodies_both_ways_at_once() -> None:
    engine = Engine(ranks=(0, 1))
    async with engines(engine), picking(engine) as here, a_stream(here) as stream:
        for one in (head(), piece(BODY[:9], False), piece(BODY[9:], True)):
            await stream.write(one)
        first = await stream.read()
        changes = first.request_headers.response.header_mutation
        told = {one.header.key: one.header.raw_value for one in changes.set_headers}
        assert told == {"x-gateway-destination-endpoint": engine.url[7:].encode(),
                        "x-data-parallel-rank": b"0"}  # fmt: skip
        assert (
            first.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == (engine.url[7:])
        )
        came = [(await stream.read()).request_body.response.body_mutation for _ in range(2)]
        parts = [one.streamed_response for one in came]
        assert [(one.body, one.end_of_stream) for one in parts] == [
            (BODY[:9], False), (BODY[9:], True)
        ]  # fmt: skip
        assert here.scheduler.requests[0].tokens.tolist() == PROMPT  # type: ignore[union-attr]


@run
async def test_a_body_may_end_with_trailers() -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here, a_stream(here) as stream:
        trailers = wire.ProcessingRequest(request_trailers=wire.HttpTrailers())
        for one in (head(), piece(BODY, False), trailers):
            await stream.write(one)
        kinds = [(await stream.read()).WhichOneof("response") for _ in range(3)]
        assert kinds == ["request_headers", "request_body", "request_trailers"]
        assert here.scheduler.requests[0].length == len(PROMPT)


@run
async def test_a_rank_is_told_alone_only_where_one_address_is_meant() -> None:
    ranked, other = Engine(ranks=(0, 1)), Engine()
    async with engines(ranked, other), picking(ranked, other, only_rank=True) as here:
        hinted = head()
        told = {"x-gateway-destination-endpoint-subset": [ranked.url[7:]]}
        hinted.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(told)
        for first, ranks, taken_out in ((head(), [], [RANK]), (hinted, [b"0"], [])):
            async with a_stream(here) as stream:
                await stream.write(first)
                await stream.write(piece(BODY, True))
                answer = await stream.read()
                changes = answer.request_headers.response.header_mutation
                assert [one.header.raw_value for one in changes.set_headers] == ranks
                assert list(changes.remove_headers) == taken_out
                assert not answer.HasField("dynamic_metadata")
        assert len(here.scheduler.requests) == 1


@pytest.mark.parametrize(
    "said", [[head()], [head(), piece(BODY[:9], False)], [head(), piece(BODY, True)]]
)
@run
async def test_a_stream_that_ends_early_leaves_nothing_behind(said: list[Any]) -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here:
        async with a_stream(here) as stream:
            for one in said:
                await stream.write(one)
            await stream.done_writing()
            while await stream.read() is not EOF:
                pass
        async with a_stream(here) as stream:
            for one in said:
                await stream.write(one)
            await until(lambda: here.router.active)
            stream.cancel()
        await until(lambda: not here.router.active)
    assert here.scheduler.is_idle
    assert here.router.reserve(0)
    assert here.router._bytes == 0


@pytest.mark.parametrize("mode", [0, 1, 2, 4])  # none, streamed, buffered, both ways at once
@run
async def test_however_often_a_gateway_asks_it_is_one_request(mode: int) -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here, a_stream(here) as stream:
        first = head()
        first.protocol_config.request_body_mode = mode
        over = wire.HttpBody(body=b"{}", end_of_stream=True)
        answer = wire.ProcessingRequest(response_body=over)
        body = piece(BODY, True)
        for one in (first, body, first, body, answer, first, body, answer):
            await stream.write(one)
        await stream.done_writing()
        while await stream.read() is not EOF:
            pass
        assert len(here.scheduler.requests) == 1


@run
async def test_a_body_that_comes_after_its_answer_is_forgotten_with_the_stream() -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here, a_stream(here) as stream:
        over = wire.HttpBody(body=b"{}", end_of_stream=True)
        for one in (head(), wire.ProcessingRequest(response_body=over), piece(BODY, True)):
            await stream.write(one)
        await until(lambda: here.scheduler.requests)


@run
async def test_lengths_and_methods_may_be_anything() -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here:
        for length, method in ((b"9" * 5000, b"\xff"), (b"-1", b"BREW"), (b"", b"")):
            async with a_stream(here) as stream:
                said = head(ends=True)
                said.request_headers.headers.headers.add(key="content-length", raw_value=length)
                said.request_headers.headers.headers.add(key=":method", raw_value=method)
                await stream.write(said)
                assert (await stream.read()).WhichOneof("response") == "request_headers"
        await until(lambda: not here.router.active)
        assert b'http_request_method="_OTHER"' in here.router.metrics.text(0)
        assert b"BREW" not in here.router.metrics.text(0)


@run
async def test_messages_out_of_turn_are_answered_in_kind() -> None:
    async with picking() as here, a_stream(here) as stream:
        answers = wire.ProcessingRequest(response_headers=wire.HttpHeaders())
        body = wire.ProcessingRequest(response_body=wire.HttpBody(body=b"{}", end_of_stream=True))
        for one in (wire.ProcessingRequest(), answers, body, body):
            await stream.write(one)
        kinds = [(await stream.read()).WhichOneof("response") for _ in range(3)]
        assert kinds == ["response_headers", "response_body", "response_body"]


@run
async def test_more_requests_than_there_may_be_are_429() -> None:
    engine = Engine()
    limits = Limits(requests=1, drain_s=0.2)
    async with (
        engines(engine), picking(engine, limits=limits) as here,
        a_stream(here) as first, a_stream(here) as second,
    ):  # fmt: skip
        await first.write(head())
        await until(lambda: here.router.active)
        status, headers = await refusal(second, head())
        assert (status, headers["retry-after"]) == (429, "5")
        await first.write(piece(BODY, True))
        assert (await first.read()).WhichOneof("response") == "request_headers"


@run
async def test_a_length_over_the_limit_is_refused_before_the_body() -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here, a_stream(here) as stream:
        assert (await refusal(stream, head(2**40)))[0] == 413


@run
async def test_what_there_is_no_memory_for_is_not_looked_into() -> None:
    engine = Engine()
    limits = Limits(bodies_bytes=20, drain_s=0.2)
    async with engines(engine), picking(engine, limits=limits) as here, a_stream(here) as stream:
        for one in (head(), piece(BODY[:15], False), piece(BODY[15:30], False)):
            await stream.write(one)
        kinds = [(await stream.read()).WhichOneof("response") for _ in range(3)]
        assert kinds == ["request_headers", "request_body", "request_body"]
        [request] = here.scheduler.requests
        assert (request.tokens, request.length) == (None, len(BODY) // 4 + 1)


@pytest.mark.parametrize(("more", "is_open"), [((), False), (("x-envoy-overloaded",), True)])
@run
async def test_the_gateway_s_own_503_is_no_reason_to_leave_an_engine(
    more: tuple[str, ...], is_open: bool
) -> None:
    engine = Engine()
    async with engines(engine), picking(engine) as here, a_stream(here) as stream:
        answer = wire.ProcessingRequest()
        answer.response_headers.headers.headers.add(key=":status", raw_value=b"503")
        for name in more:
            answer.response_headers.headers.headers.add(key=name, raw_value=b"true")
        engine.away = True
        for one in (head(), piece(BODY, True), answer):
            await stream.write(one)
        for _ in range(3):
            told = await stream.read()
        assert told.WhichOneof("response") == "response_headers"
        assert bool(here.router.endpoints.backends) == is_open


@run
async def test_gateways_need_a_client_s_token_if_there_are_tokens(tmp_path: Path) -> None:
    engine = Engine()
    tokens = write(
        tmp_path / "tokens.yaml", "client: [gateway-gateway-1]\nagent: [agent-agent-agent]"
    )
    listening = Listening("127.0.0.1:0", tokens=tokens)
    async with engines(engine), picking(engine, listening=listening) as here:
        codes = {"": "UNAUTHENTICATED", "x": "UNAUTHENTICATED",
                 "agent-agent-agent": "PERMISSION_DENIED"}  # fmt: skip
        for token, code in codes.items():
            async with a_stream(here, ("authorization", f"Bearer {token}")) as stream:
                assert (await stream.code()).name == code
        async with a_stream(here, ("authorization", "Bearer gateway-gateway-1")) as stream:
            await stream.write(head(ends=True))
            assert (await stream.read()).WhichOneof("response") == "request_headers"


@run
async def test_gateways_may_come_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    listening = Listening("127.0.0.1:0", certificate, key)
    trust = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    engine = Engine()
    async with (
        engines(engine), picking(engine, listening=listening) as here,
        grpc.aio.secure_channel(f"127.0.0.1:{here.port}", trust) as channel,
    ):  # fmt: skip
        stream = process(channel)
        await stream.write(head(ends=True))
        assert (await stream.read()).WhichOneof("response") == "request_headers"


@run
async def test_it_is_ready_once_an_engine_is_there() -> None:
    engine = Engine(away=True)
    names = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")

    async def healths(port: int) -> list[str]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub, found = health_pb2_grpc.HealthStub(channel), []
            for name in names:
                told = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                found.append(health_pb2.HealthCheckResponse.ServingStatus.Name(told.status))
            return found

    async with engines(engine), picking(engine, waits=False) as here:
        assert await healths(here.port) == ["NOT_SERVING", "SERVING", "NOT_SERVING", "NOT_SERVING"]
        engine.away = False
        await until(lambda: here.router.endpoints.backends)
        while (found := await healths(here.port))[0] != "SERVING":
            pass
        assert found == ["SERVING"] * 4


@run
async def test_it_has_the_front_s_figures() -> None:
    engine = Engine()
    metrics = f"127.0.0.1:{a_port()}"
    async with engines(engine), picking(engine, metrics=metrics) as here:
        async with a_stream(here) as stream:
            assert (await refusal(stream, head(), piece(b"{", True)))[0] == 400
        await until(lambda: not here.router.active)
        page = await asyncio.to_thread(lambda: urlopen(f"http://{metrics}/metrics").read().decode())
    assert (
        f'vllm_router_request_errors_total{{error_type="refused",route="{COMPLETIONS}"}} 1' in page
    )
    assert f'vllm_router_worker_health{{worker="{engine.url}"}} 1.0' in page
    assert "http_server_active_requests 0.0" in page


@run
async def test_the_command_runs_until_it_is_told_to_end() -> None:
    engine = Engine()
    async with engines(engine):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "placer.cli.main", "picker", "--engine", engine.url,
            "--listen", "127.0.0.1:0", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        line = (await child.stdout.readline()).decode()
        assert line.startswith("the picker listens on 127.0.0.1:")
        address = line.split()[-1]
        async with grpc.aio.insecure_channel(address) as channel:
            stream = process(channel)
            await stream.write(head(ends=True))
            told = await stream.read()
            assert told.WhichOneof("response") in ("request_headers", "immediate_response")
            await stream.done_writing()
            assert await stream.read() is EOF
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0


def test_tokens_are_as_usage_says_wherever_it_is_cut() -> None:
    whole = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}}'
    for cut in range(len(whole)):
        answer = Answer(is_shown=True)
        answer.head(200, b"application/json")
        answer.add(b"x" * 2 * TAIL + whole[:cut])
        answer.add(whole[cut:])
        assert answer.generated(99) == 12


def test_without_usage_every_event_is_a_token_and_without_a_body_as_many_as_may_be() -> None:
    hidden = Answer(is_shown=False)
    assert hidden.generated(99) == 0  # it never began
    hidden.head(200, b"text/event-stream; charset=utf-8")
    assert hidden.generated(99) == 99
    answer = Answer(is_shown=True)
    answer.head(200, b"text/event-stream; charset=utf-8")
    assert answer.generated(99) == 0
    answer.add(b"data: {}\n\ndata: {}\n\n")
    assert answer.generated(99) == 2
    answer.head(400, b"application/json")
    assert answer.generated(99) == 0
