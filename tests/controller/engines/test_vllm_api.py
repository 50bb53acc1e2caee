"""What is asked of vLLM's API servers over HTTP, and what is made of strange answers."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from controller.engines import vllm_api
from controller.engines.vllm_api import (
    LIMIT,
    Answer,
    Phase,
    Progress,
    UnreachableError,
    VllmApi,
    ask,
    fault,
)
from placer.clock import SystemClock
from tests.controller.tiny_pool import asynchronous


@contextmanager
def a_server(status: int, body: bytes, **headers: str) -> Iterator[tuple[VllmApi, list[str]]]:
    """One that answers everything so, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append(f"{self.command} {self.path} {told.decode()}".strip())
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield VllmApi(f"http://127.0.0.1:{server.server_port}/", SystemClock(), ask), asked
    finally:
        server.shutdown()
        server.server_close()


@asynchronous
async def test_the_target_is_absolute() -> None:
    with a_server(200, b"{}") as (api, asked):
        assert await api.scale(4) == Answer(200, "{}")
        assert asked == ['POST /scale_elastic_ep {"new_data_parallel_size": 4}']


@pytest.mark.parametrize(
    ("status", "body", "progress"),
    [
        (503, b"?", Progress(Phase.COMMITTING)),
        (200, b'{"is_scaling_elastic_ep": false}', Progress(Phase.IDLE)),
        (200, b'{"is_scaling_elastic_ep": true}', Progress(Phase.COMMITTING)),
        (
            200,
            b'{"is_scaling_elastic_ep": false, "phase": "failed", "epoch": "e1",'
            b' "error": "NCCL\\nerror", "requested_data_parallel_size": 4}',
            Progress(Phase.FAILED, "e1", 4, "NCCL error"),
        ),
    ],
)
@asynchronous
async def test_how_far_it_is(status: int, body: bytes, progress: Progress) -> None:
    with a_server(status, body) as (api, asked):
        assert await api.progress() == progress
        assert asked[0] == "POST /is_scaling_elastic_ep"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b'{"detail": "Not Found"}'),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"is_scaling_elastic_ep": false, "phase": "resting"}'),
        (200, b'{"phase": "idle", "requested_data_parallel_size": "all"}'),
        (200, b"x" * (LIMIT + 1)),
    ],
)
@asynchronous
async def test_other_servers_are_told_from_vllms(status: int, body: bytes) -> None:
    with (
        a_server(status, body) as (api, _),
        pytest.raises(UnreachableError, match=r"is it vLLM 0\.32 or 0\.33\?$") as said,
    ):
        await api.progress()
    assert len(str(said.value)) < 500


@asynchronous
async def test_no_more_is_read_of_an_answer_than_any_has() -> None:
    with a_server(200, b"x" * (2 * LIMIT)) as (api, _):
        assert len((await api.scale(4)).text) == LIMIT


@asynchronous
async def test_nobody_is_sent_elsewhere() -> None:
    with (
        a_server(200, b"{}") as (other, elsewhere),
        a_server(307, b"", Location=f"{other.address}/scale_elastic_ep") as (api, _),
    ):
        assert (await api.scale(4)).status == 307
        assert elsewhere == []


@asynchronous
async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = VllmApi(f"http://127.0.0.1:{port}", SystemClock(), ask)
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}/version does not answer"):
        await api.serves()


@asynchronous
async def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as mute:
        patch.setattr(vllm_api, "LOOK_S", 0.2)
        api = VllmApi(f"http://127.0.0.1:{mute.getsockname()[1]}", SystemClock(), ask)
        with pytest.raises(UnreachableError, match="does not answer"):
            await api.serves()


@asynchronous
async def test_503_of_a_server_that_lets_requests_in_is_no_phase() -> None:
    async def store_is_silent(method: str, url: str, *_: Any) -> Answer:
        return Answer(200 if url.endswith("/version") else 503, "{}")

    with pytest.raises(UnreachableError, match="is_scaling_elastic_ep answers 503"):
        await VllmApi("http://host", SystemClock(), store_is_silent).progress()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"detail": "Scale failed"}', "Scale failed"),
        ('{"error": {"message": "Scale\\nfailed"}}', "Scale failed"),
        ('{"error": "busy"}', '{"error": "busy"}'),
        ("", "answer 500"),
    ],
)
def test_errors_are_told_on_one_line(text: str, told: str) -> None:
    assert Answer(500, text).told == told


@pytest.mark.parametrize(
    "address",
    ["", "host:8000", "ftp://host", "http://", "http://host/v1", "http://host:0", "http://host:a",
     "http://user@host", "http://host?x", "file:///etc/passwd"],
)  # fmt: skip
def test_what_is_no_servers_address_is_none(address: str) -> None:
    assert fault(address).endswith("set it to http://host:port")


@pytest.mark.parametrize("address", ["http://host", "https://host:8000/", "http://[::1]:8000"])
def test_what_is_one_is_one(address: str) -> None:
    assert fault(address) == ""
