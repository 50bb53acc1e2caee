"""A front: it listens, looks after what takes too long, and ends once nobody waits any more."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from controller.router.desk.desk import Desk
from controller.router.front.service import Service
from controller.router.pool.discovery import Discovery
from controller.router.pool.doors import Named
from controller.router.pool.watching import Watch
from controller.router.wire.arriving import Connection
from controller.server.security import Listening, SecurityError
from controller.server.tokens import Tokens

TICK_S = 0.25
BACKLOG = 4096
HANDSHAKE_S = 10.0

log = logging.getLogger("placer.front")


class Front:
    """named: addresses of engines, if no controller says where they are"""

    def __init__(
        self,
        desk: Desk,
        listening: Listening,
        named: Mapping[str, Named] | None = None,
        discovery: Discovery | None = None,
    ) -> None:
        """Raises PlacerError."""
        listening.check()
        self._listening = listening
        self.desk = desk
        tokens = Tokens(listening.tokens) if listening.tokens else None
        self.service = Service(desk, tokens)
        self._named, self._discovery = named or {}, discovery
        self._tls = listening.tls()

    async def run(self, stop: asyncio.Event, started: Any = None) -> None:
        """Until ``stop``, and what is under way then. started: called with the port"""
        desk = self.desk
        watch = Watch(desk.doors, desk.clock, desk.key)
        server = await self._listen()
        tasks = [asyncio.create_task(self._tick())]
        watch.name(self._named)
        if self._discovery is not None:
            tasks.append(asyncio.create_task(self._discovery.run(watch.name, desk.know)))
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
            watch.close()
            if self._discovery is not None:
                self._discovery.close()
            if desk.tokenizing is not None:
                desk.tokenizing.close()
            await desk.clock.sleep(0)  # for what hears of it
            desk.log.close()

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
        desk = self.desk
        while True:
            desk.tick_s = now_s = desk.clock.monotonic()
            for one in [one for one in desk.active if one.due_s <= now_s]:
                if not one.is_over:
                    one.expire()
            for one in [one for one in self.service.connections if one.due_s <= now_s]:
                one.expire()
            desk.log.flush()
            await desk.clock.sleep(TICK_S)

    async def _drain(self) -> None:
        """Requests under way are answered, as far as there is time."""
        desk, service = self.desk, self.service
        service.draining = True
        for one in list(service.connections):
            one.drain()
        until_s = desk.clock.monotonic() + desk.limits.drain_s
        while desk.active and desk.clock.monotonic() < until_s:
            await desk.clock.sleep(TICK_S / 5)
        for exchange in list(desk.active):
            exchange.give_up("this front was shut down")
        await desk.clock.sleep(TICK_S / 5)
