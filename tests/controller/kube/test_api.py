"""Who an operator is to its API server may change while answers are being read."""

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from aiohttp import web

from controller.kube.cluster.api import Api, ApiError
from controller.kube.objects import PODS


class Server:
    """Knows one token, and sends an event to all who watch when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.token, self._file, self._config = "", folder / "token", folder / "kubeconfig"
        self._ca, self.port = folder / "ca.crt", 0
        self.events: list[asyncio.Queue[str]] = []

    async def __aenter__(self) -> "Server":
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._write(f"http://127.0.0.1:{self._runner.addresses[0][1]}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def move(self, authority: trustme.CA) -> None:
        """To a server whose certificate is another authority's; the file of that is replaced."""
        for site in list(self._runner.sites):
            await site.stop()
        assert self._runner.server is not None
        await self._runner.server.shutdown(0.1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]
        authority.cert_pem.write_to_path(self._ca)
        self._write(f"https://127.0.0.1:{self.port}")

    def _write(self, url: str) -> None:
        cluster = {"server": url, **({"certificate-authority": str(self._ca)} if self.port else {})}
        self._config.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "here", "user": {"tokenFile": str(self._file)}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        }))  # fmt: skip

    def replace_token(self, token: str) -> None:
        self.token = token
        self._file.write_text(token)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"message": "Unauthorized"}, status=401)
        if "watch" not in request.query:
            return web.json_response({"metadata": {"name": request.path.rpartition("/")[2]}})
        answer, events = web.StreamResponse(), asyncio.Queue[str]()
        await answer.prepare(request)
        self.events.append(events)
        while True:
            told = '{"type": "ADDED", "object": {"metadata": {"name": "%s"}}}\n'
            await answer.write((told % await events.get()).encode())


async def watched(api: Api, server: Server) -> "asyncio.Future[Any]":
    """The first event of a watch that the server has begun to answer."""
    first = asyncio.ensure_future(anext(api.watch(PODS, "here", "1")))
    while not server.events:
        await asyncio.sleep(0.01)
    return first


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return tmp_path


def test_a_watch_goes_on_when_another_request_is_refused_and_the_token_read_again(
    folder: Path,
) -> None:
    async def run() -> str:
        async with Server(folder) as server:
            server.replace_token("old")
            api = await Api.open()
            first = await watched(api, server)
            server.replace_token("new")
            await api.get(PODS, "here", "chat-0")
            server.events[0].put_nowait("chat-1")
            found = await asyncio.wait_for(first, 20)
            await api.close()
            return str(found["object"]["metadata"]["name"])

    assert asyncio.run(run()) == "chat-1"


def test_a_token_is_read_once_for_all_who_are_refused_at_the_same_time(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[str]:
        async with Server(folder) as server:
            server.replace_token("old")
            api = await Api.open()
            server.replace_token("new")
            names = [f"chat-{one}" for one in range(20)]
            found = await asyncio.gather(*(api.get(PODS, "here", name) for name in names))
            await api.close()
            return [one["metadata"]["name"] for one in found]

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(run()) == [f"chat-{one}" for one in range(20)]
    assert len([one for one in caplog.messages if "reading it again" in one]) == 1


def test_a_kubeconfig_that_is_being_written_is_a_refusal_to_be_tried_again(folder: Path) -> None:
    async def run() -> None:
        async with Server(folder) as server:
            server.replace_token("old")
            api = await Api.open()
            whole = (folder / "kubeconfig").read_text()
            server.replace_token("new")
            (folder / "kubeconfig").write_text("")
            with pytest.raises(ApiError, match="no cluster"):
                await api.get(PODS, "here", "chat-0")
            (folder / "kubeconfig").write_text(whole)
            assert (await api.get(PODS, "here", "chat-0"))["metadata"]["name"] == "chat-0"
            await api.close()

    asyncio.run(run())


def test_an_event_of_as_many_bytes_as_an_object_may_have_is_read(folder: Path) -> None:
    async def run() -> int:
        async with Server(folder) as server:
            server.replace_token("here")
            api = await Api.open()
            first = await watched(api, server)
            server.events[0].put_nowait("x" * 2**21)
            found = await asyncio.wait_for(first, 20)
            await api.close()
            return len(found["object"]["metadata"]["name"])

    assert asyncio.run(run()) == 2**21


def test_a_server_whose_authority_is_another_is_trusted_once_the_file_says_so(
    folder: Path,
) -> None:
    async def run() -> str:
        async with Server(folder) as server:
            server.replace_token("here")
            await server.move(trustme.CA())
            api = await Api.open()
            await api.get(PODS, "here", "chat-0")
            await server.move(trustme.CA())
            found = await api.get(PODS, "here", "chat-1")
            await api.close()
            return str(found["metadata"]["name"])

    assert asyncio.run(run()) == "chat-1"
