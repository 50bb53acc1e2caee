"""The page's own port: HTTP, to read only, behind the controller's tokens; docs/page.md.

The page itself holds no data and is for whoever asks. What it shows comes from ``page.json``, for
those who may see the fleet.
"""

import asyncio
import base64
import gzip
import ipaddress
import platform
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from hashlib import sha256

import grpc
from aiohttp import web
from aiohttp.typedefs import Handler

from controller.fleet.workers import UnknownError
from controller.loop import Loop
from controller.page.live import Live
from controller.server.callers import Role
from controller.server.security import Guard, Listening, SecurityError, Tokens
from placer.report.html import page_report
from placer.report.page import page_json

FRESH_S = 2.0  # that an answer is given again, however many look
DATA = "/page.json"
_SCRIPT = re.compile("""<script(?: type="text/plain" id="plotly")?>(.*?)</script>""", re.DOTALL)
HEADERS = {
    "Server": "placer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Served:
    """What is answered to whom."""

    def __init__(self, loop: Loop, live: Live, listening: Listening) -> None:
        self._live, self._listening, self._clock = live, listening, loop.ledger.clock
        tokens = Tokens(listening.tokens) if listening.tokens else None
        self._guard = Guard({DATA: Role.SEE}, tokens, self._clock)
        self._turn = asyncio.Lock()
        self._answers: dict[str, tuple[float, bytes]] = {}  # since when, by pool
        self.app = web.Application(middlewares=[self._checked])
        self.app.router.add_get("/", self._page, allow_head=False)
        self.app.router.add_get(DATA, self._data, allow_head=False)

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not self._is_for_us(request.host):
                text = "this is not the host that was meant: open the page by its address"
                found: web.StreamResponse = web.Response(status=403, text=text)
            else:
                found = await handler(request)
        except web.HTTPException as error:
            found = web.Response(status=error.status, text=error.reason)
            if "Allow" in error.headers:
                found.headers["Allow"] = error.headers["Allow"]
        found.headers.update(HEADERS)
        found.headers.setdefault("Content-Security-Policy", "default-src 'none'")
        found.headers.setdefault("Cache-Control", "no-store")
        return found

    def _is_for_us(self, host: str) -> bool:
        """Somebody's site can have its name lead here (DNS rebinding): a browser then sends that
        name. Over TLS the certificate says whose name it is."""
        if self._listening.certificate is not None:
            return True
        name = re.sub(r":\d+$", "", host).strip("[]").lower()
        own = self._listening.address.rpartition(":")[0].strip("[]").lower()
        if name in ("localhost", own, platform.node().lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def _page(self, request: web.Request) -> web.Response:
        running = asyncio.get_running_loop()
        body, tag, policy = await running.run_in_executor(None, shell)
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": policy}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        headers |= {"Content-Encoding": "gzip"}
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=headers)

    async def _data(self, request: web.Request) -> web.Response:
        shown = {name.lower(): value for name, value in request.headers.items()}
        if (refusal := self._guard.refusal(DATA, shown)) is not None:
            code, reason = refusal
            if code is not grpc.StatusCode.UNAUTHENTICATED:
                return web.Response(status=403, text=reason)
            await self._guard.strangers.wait(f"http:{request.remote}:0")
            return web.Response(status=401, text=reason, headers={"WWW-Authenticate": "Bearer"})
        try:
            body = await self._answer(request.query.get("pool", ""))
        except UnknownError as error:
            return web.Response(status=404, text=str(error))
        return web.Response(body=body, content_type="application/json", charset="utf-8")

    async def _answer(self, pool: str) -> bytes:
        async with self._turn:
            now_s = self._clock.monotonic()
            self._answers = {
                name: told for name, told in self._answers.items() if now_s - told[0] < FRESH_S
            }
            if pool not in self._answers:
                self._answers[pool] = now_s, page_json(await self._live.page(pool))
            return self._answers[pool][1]


@cache
def shell() -> tuple[bytes, str, str]:
    """The page without data, packed; its tag, and what it may do: its own scripts, and nothing
    elsewhere."""
    text = page_report(None)
    digests = (sha256(one.encode()).digest() for one in _SCRIPT.findall(text))
    scripts = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    body = gzip.compress(text.encode(), 6, mtime=0)
    return body, f'"{sha256(body).hexdigest()[:32]}"', policy


@asynccontextmanager
async def serving(loop: Loop, live: Live, listening: Listening) -> AsyncIterator[int]:
    """The port. Raises SecurityError."""
    listening.check()
    host, _, port = listening.address.rpartition(":")
    served, context = Served(loop, live, listening), listening.tls()
    runner = web.AppRunner(served.app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            raise SecurityError(
                f"cannot listen on {listening.address}: is the port taken, or another host's "
                "address?"
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
