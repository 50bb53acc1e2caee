"""Looks after every address: whether it answers, what serves there, how loaded its ranks are."""

import asyncio
import logging
from collections.abc import Mapping

from controller.router.pool.endpoints import Endpoint, Endpoints, Listed
from controller.router.pool.probe import LOOK_S, TURNED_AWAY, probe
from controller.router.wire.addresses import address
from controller.router.wire.heads import Headers
from controller.router.wire.server import Server
from controller.router.wire.upstream import LostError
from controller.samples import present_by_rank
from placer.clock import Clock
from placer.errors import PlacerError

POLL_S = 0.5  # between two looks at an engine's load
ASK_S = 0.25  # at one that takes no requests
MISSES = 3  # looks that fail, one after another, until nothing is sent there
FORGOTTEN_S = 60.0  # after which an address that nobody names any more is left

log = logging.getLogger("placer.front")


class HealthChecks:
    """One task an address. key: headers that open engines"""

    def __init__(self, endpoints: Endpoints, clock: Clock, key: Headers) -> None:
        self._endpoints, self._clock, self._key = endpoints, clock, key
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._missed_s: dict[str, float] = {}  # since when nobody names it

    def follow(self, listed: Mapping[str, Listed]) -> None:
        """The addresses that there are now. One that is missing is left after a while: whoever
        names them may have been started again."""
        now_s = self._clock.monotonic()
        for url, one in listed.items():
            self._missed_s.pop(url, None)
            known = self._endpoints.all.get(url)
            if known is None:
                self._add(url, one)
            elif known.listed != one:
                known.listed = one
                self._endpoints.shut(known, f"{url} is {one.engine}'s now")
        for url in self._endpoints.all.keys() - listed.keys():
            if now_s - self._missed_s.setdefault(url, now_s) >= FORGOTTEN_S:
                self._leave(url)

    async def look(self, endpoint: Endpoint) -> None:
        """Once."""
        server = endpoint.server
        if not endpoint.is_open:
            # 503 while an engine changes its width, and at ranks that are retired.
            if (await server.ask("GET", "/version", LOOK_S)).status == TURNED_AWAY:
                raise LostError(f"{endpoint.url} answers 503")
            self._endpoints.open(endpoint, await probe(server, self._key, endpoint.listed.ranks))
        reply = await server.ask("GET", "/metrics", LOOK_S, self._key)
        if reply.status == TURNED_AWAY:
            raise LostError(f"{endpoint.url} answers 503")
        present = present_by_rank(reply.body)
        info = endpoint.info
        if present and info and not info.fault and set(present) != set(info.ranks):
            self._endpoints.shut(endpoint, f"{endpoint.url} has other ranks now")
        else:
            self._endpoints.heard(endpoint, present)

    def close(self) -> None:
        for url in list(self._endpoints.all):
            self._leave(url)

    def _add(self, url: str, listed: Listed) -> None:
        try:
            endpoint = Endpoint(Server(address(url), self._clock), listed)
        except PlacerError as error:  # whoever registered it wrote it
            log.warning("placer: %s: %s", listed.engine, error)
            return
        self._endpoints.add(endpoint)
        self._tasks[url] = asyncio.create_task(self._stay(endpoint))

    def _leave(self, url: str) -> None:
        self._tasks.pop(url).cancel()
        self._missed_s.pop(url, None)
        self._endpoints.remove(url)

    async def _stay(self, endpoint: Endpoint) -> None:
        misses = 0
        while True:
            try:
                await self.look(endpoint)
                misses = 0
            except LostError as error:
                misses += 1
                if misses >= MISSES or not endpoint.is_open:
                    self._endpoints.shut(endpoint, str(error))
            await self._clock.sleep(POLL_S if endpoint.is_open else ASK_S)
