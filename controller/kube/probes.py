"""/healthz, /readyz and /metrics, over HTTP."""

import logging
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

EVERYWHERE = "0.0.0.0"  # kubelets and Prometheus come from other hosts

log = logging.getLogger("placer.kube")


class Probes:
    """unready: why it is not ready, a line each; empty if it is. Healthy is whoever answers at all:
    an operator whose parts ended has ended itself."""

    def __init__(self, port: int, unready: Callable[[], list[str]]) -> None:
        self._port, self._unready = port, unready
        app = web.Application()
        app.add_routes([
            web.get("/healthz", self._healthz), web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics),
        ])  # fmt: skip
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, EVERYWHERE, self._port).start()

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if why := self._unready():
            return web.Response(status=503, text="\n".join(why) + "\n")
        return web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        headers = {"Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=generate_latest(), headers=headers)
