"""A front: it listens, looks after what takes too long, and ends once nobody waits any more."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from controller.router.front.service import Service
from controller.router.pool.discovery import Discovery
from controller.router.pool.endpoints import Listed
from controller.router.pool.health import HealthChecks
from controller.router.shared.request_router import RequestRouter
from controller.router.wire.connection import Connection
from controller.server.security import Listening, SecurityError
from controller.server.tokens import Tokens

TICK_S = 0.25
BACKLOG = 4096
HANDSHAKE_S = 10.0

log = logging.getLogger("placer.front")


class Front:
    """listed: addresses of engines, if no controller says where they are"""

    def __init__(
        self,
        router: RequestRouter,
        listening: Listening,
        listed: Mapping[str, Listed] | None = None,
        discovery: Discovery | None = None,
    ) -> None:
        """Raises PlacerError."""
        listening.check()
        self._listening = listening
        self.router = router
        tokens = Tokens(listening.tokens) if listening.tokens else None
        self.service = Service(router, tokens)
        self._listed, self._discovery = listed or {}, discovery
        self._tls = listening.tls()

    async def run(self, stop: asyncio.Event, started: Any = None) -> None:
        """Until ``stop``, and what is under way then. started: called with the port"""
        router = self.router
        checks = HealthChecks(router.endpoints, router.clock, router.key)
        server = await self._listen()
        tasks = [asyncio.create_task(self._tick())]
        checks.follow(self._listed)
        if self._discovery is not None:
            tasks.append(asyncio.create_task(self._discovery.run(checks.follow, router.know)))
        try:
            if started is not None:
                started(server.sockets[0].getsockname()[1])
            await stop.wait()
            server.close()
            await self._drain()
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for one in list(self.service.connections):
                one.transport.abort()
            checks.close()
            if self._discovery is not None:
                self._discovery.close()
            if router.tokenizing is not None:
                router.tokenizing.close()
            await router.clock.sleep(0)  # for what hears of it
            router.log.close()

    async def _listen(self) -> asyncio.Server:
        host, _, port = self._listening.address.rpartition(":")
        more: dict[str, Any] = {}
        if self._tls is not None:
            more = {"ssl": self._tls, "ssl_handshake_timeout": HANDSHAKE_S}
        try:
            return await asyncio.get_running_loop().create_server(
                lambda: Connection(self.service),
                host.strip("[]"),
                int(port),
                backlog=BACKLOG,
                **more,
            )
        except OSError as error:
            raise SecurityError(
                f"cannot listen on {self._listening.address}: is the port taken, or another host's "
                "address?"
            ) from error

    async def _tick(self) -> None:
        router = self.router
        while True:
            router.tick_s = now_s = router.clock.monotonic()
            for one in [one for one in router.active if one.due_s <= now_s]:
                if not one.is_over:
                    one.expire()
            for one in [one for one in self.service.connections if one.due_s <= now_s]:
                one.expire()
            router.log.flush()
            await router.clock.sleep(TICK_S)

    async def _drain(self) -> None:
        """Requests under way are answered, as far as there is time."""
        router, service = self.router, self.service
        service.draining = True
        for one in list(service.connections):
            one.drain()
        until_s = router.clock.monotonic() + router.limits.drain_s
        while router.active and router.clock.monotonic() < until_s:
            await router.clock.sleep(TICK_S / 5)
        for exchange in list(router.active):
            exchange.give_up("this front was shut down")
        await router.clock.sleep(TICK_S / 5)
