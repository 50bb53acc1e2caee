"""What stands between an operator and its API server: it counts writes, and does what a test wants
done with a request: answers something else, cuts a watch, or kills the operator before or after."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.kube.cluster import Cluster

WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    body: bytes
    is_watch: bool

    @property
    def is_write(self) -> bool:
        """Of what is not the Lease."""
        return self.method in WRITES and "/leases" not in self.path

    @property
    def what(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Proxy:
    """
    writes: all that reached the server, and how it answered
    before: told of each request; returns a status and headers to be answered instead, or None
    tokens: that are known, by what the operator calls them; others are refused. None: all are
    after:  told once the server has answered, before the operator hears of it
    """

    server: str
    writes: list[tuple[Asked, int]] = field(default_factory=list)
    before: Callable[[Asked], tuple[int, dict[str, str]] | None] = lambda asked: None
    after: Callable[[Asked, int], None] = lambda asked, status: None
    tokens: dict[str, str] = field(default_factory=dict)
    watches: set[Any] = field(default_factory=set)
    url: str = ""
    loop: Any = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        is_watch = request.query.get("watch") == "true"
        asked = Asked(request.method, request.path, body, is_watch)
        if (instead := self.before(asked)) is not None:
            status, headers = instead
            told = {"kind": "Status", "status": "Failure", "message": "forced", "code": status}
            return web.json_response(told, status=status, headers=headers)
        kept = ("Authorization", "Content-Type", "Accept")
        headers = {key: value for key, value in request.headers.items() if key in kept}
        if self.tokens:
            token = headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in self.tokens:
                return web.json_response({"message": "Unauthorized"}, status=401)
            headers["Authorization"] = f"Bearer {self.tokens[token]}"
        # A certificate would count more than a token.
        session = request.app[TOKENS if "Authorization" in headers else ADMINISTRATOR]
        url = self.server + request.path_qs
        async with session.request(request.method, url, data=body, headers=headers) as found:
            if is_watch and found.status == 200:
                return await self._stream(request, found)
            answer = await found.read()
            if asked.is_write:
                self.writes.append((asked, found.status))
            self.after(asked, found.status)
            kind = found.headers.get("Content-Type", "application/json")
            return web.Response(body=answer, status=found.status, headers={"Content-Type": kind})

    async def _stream(self, request: web.Request, found: Any) -> web.StreamResponse:
        answer = web.StreamResponse()
        self.watches.add(request.transport)
        try:
            await answer.prepare(request)
            async for part in found.content.iter_any():
                await answer.write(part)
        except (ConnectionError, aiohttp.ClientError):
            pass  # the operator is gone, or its watch was cut
        finally:
            self.watches.discard(request.transport)
        return answer

    def cut(self) -> int:
        """All watches that there are, as when a load balancer goes; their number."""
        cut = list(self.watches)
        for transport in cut:
            self.loop.call_soon_threadsafe(transport.abort)
        return len(cut)


ADMINISTRATOR = web.AppKey("administrator", aiohttp.ClientSession)
TOKENS = web.AppKey("tokens", aiohttp.ClientSession)


def _session(tls: ssl.SSLContext) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=tls, limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout())


@contextmanager
def between(cluster: Cluster) -> Iterator[Proxy]:
    """Requests keep their sender's token; those without one are the administrator's."""
    settings = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--minify", "-o", "yaml"))
    [there], [user] = settings["clusters"], settings["users"]
    tls = ssl.create_default_context(cafile=there["cluster"]["certificate-authority"])
    plain = ssl.create_default_context(cafile=there["cluster"]["certificate-authority"])
    tls.load_cert_chain(user["user"]["client-certificate"], user["user"]["client-key"])
    proxy = Proxy(there["cluster"]["server"])
    started, stop = threading.Event(), asyncio.Event()

    async def run() -> None:
        proxy.loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=2**24, handler_args={"access_log": None})
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        async with _session(tls) as app[ADMINISTRATOR], _session(plain) as app[TOKENS]:
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await stop.wait()
            proxy.cut()
            await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(20)
    try:
        yield proxy
    finally:
        proxy.loop.call_soon_threadsafe(stop.set)
        thread.join()


def kubeconfig(proxy: Proxy, folder: Path, token: str = "") -> Path:
    """token: of whom the operator is; without one it is the administrator"""
    path = folder / f"proxy-{token}.kubeconfig"
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": proxy.url}}],
        "users": [{"name": "here", "user": {"token": token} if token else {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
    }))  # fmt: skip
    return path
