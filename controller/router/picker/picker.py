"""A picker: it listens for gateways, and ends once none waits for it any more."""

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from prometheus_client import start_http_server

from controller.router.picker.messages import SERVICE
from controller.router.picker.service import PROCESS, Service
from controller.router.pool.discovery import Discovery
from controller.router.pool.endpoints import Listed
from controller.router.pool.health import HealthChecks
from controller.router.shared.request_router import RequestRouter
from controller.server.security import Guard, Listening, Role, Tokens
from placer.errors import PlacerError

LOOK_S = 0.25
SMALL = 2**20  # of a message besides a body
LIVES, READY = "liveness", ("", "readiness", SERVICE)  # as the protocol names them
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Picker:
    """listed: addresses of engines, if no controller says where they are; metrics: ``host:port``
    for Prometheus, or empty"""

    def __init__(
        self,
        router: RequestRouter,
        listening: Listening,
        listed: Mapping[str, Listed] | None = None,
        discovery: Discovery | None = None,
        only_rank: bool = False,
        metrics: str = "",
    ) -> None:
        """Raises PlacerError."""
        listening.check()
        self.router, self._listening, self._metrics = router, listening, metrics
        self._tokens = Tokens(listening.tokens) if listening.tokens else None
        self._listed, self._discovery = listed or {}, discovery
        self._service = Service(router, only_rank)
        self._health = health.HealthServicer()

    async def run(self, stop: asyncio.Event, started: Any = None) -> None:
        """Until ``stop``, and what is under way then. started: called with the port. Raises
        PlacerError."""
        router = self.router
        server, port = self._server()
        pages = self._pages()
        checks = HealthChecks(router.endpoints, router.clock, router.key)
        checks.follow(self._listed)
        tasks = []
        if self._discovery is not None:
            tasks.append(asyncio.create_task(self._discovery.run(checks.follow, router.know)))
        try:
            await self._health.set(LIVES, SERVING)
            await self._tell(NOT_SERVING)
            await server.start()
            if started is not None:
                started(port)
            ready = asyncio.create_task(self._get_ready())
            tasks.append(ready)
            await stop.wait()
            ready.cancel()
            await self._tell(NOT_SERVING)
            await server.stop(router.limits.drain_s)
        finally:
            await server.stop(None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            checks.close()
            if pages is not None:
                pages.shutdown()
                pages.server_close()
            if self._discovery is not None:
                self._discovery.close()
            if router.tokenizing is not None:
                router.tokenizing.close()
            await router.clock.sleep(0)  # for what hears of it

    def _server(self) -> tuple[grpc.aio.Server, int]:
        largest = self.router.limits.request_bytes + SMALL
        options = [("grpc.max_receive_message_length", largest), ("grpc.so_reuseport", 0)]
        endpoints = []
        if self._tokens is not None:
            endpoints = [Guard({PROCESS: Role.CLIENT}, self._tokens, self.router.clock)]
        server = grpc.aio.server(interceptors=endpoints, options=options)
        self._service.add_to(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server, self._listening.open_port(server)

    def _pages(self) -> Any:
        """Served from a thread."""
        if not self._metrics:
            return None
        host, _, port = self._metrics.rpartition(":")
        try:
            pages, _ = start_http_server(
                int(port), host or "127.0.0.1", self.router.metrics.registry
            )
        except (OSError, ValueError) as error:
            raise PlacerError(
                f"no metrics on {self._metrics} ({error}): give a free host:port"
            ) from error
        return pages

    async def _get_ready(self) -> None:
        """Once an engine was there it stays ready: that there is none any more, it says itself."""
        while not self.router.endpoints.backends:
            await self.router.clock.sleep(LOOK_S)
        await self._tell(SERVING)

    async def _tell(self, status: Any) -> None:
        for name in READY:
            await self._health.set(name, status)
