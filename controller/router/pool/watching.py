"""Looks after every address: whether it answers, what stands there, how loaded its ranks are."""

import asyncio
import logging
from collections.abc import Mapping

from controller.router.pool.doors import Door, Doors, Named
from controller.router.pool.standing import LOOK_S, TURNED_AWAY, stands
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


class Watch:
    """One task an address. key: headers that open engines"""

    def __init__(self, doors: Doors, clock: Clock, key: Headers) -> None:
        self._doors, self._clock, self._key = doors, clock, key
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._missed_s: dict[str, float] = {}  # since when nobody names it

    def name(self, named: Mapping[str, Named]) -> None:
        """The addresses that there are now. One that is missing is left after a while: whoever
        names them may have been started again."""
        now_s = self._clock.monotonic()
        for url, one in named.items():
            self._missed_s.pop(url, None)
            known = self._doors.all.get(url)
            if known is None:
                self._add(url, one)
            elif known.named != one:
                known.named = one
                self._doors.shut(known, f"{url} is {one.engine}'s now")
        for url in self._doors.all.keys() - named.keys():
            if now_s - self._missed_s.setdefault(url, now_s) >= FORGOTTEN_S:
                self._leave(url)

    async def look(self, door: Door) -> None:
        """Once."""
        server = door.server
        if not door.is_open:
            # 503 while an engine changes its width, and at ranks that are retired.
            if (await server.ask("GET", "/version", LOOK_S)).status == TURNED_AWAY:
                raise LostError(f"{door.url} answers 503")
            self._doors.open(door, await stands(server, self._key, door.named.ranks))
        reply = await server.ask("GET", "/metrics", LOOK_S, self._key)
        if reply.status == TURNED_AWAY:
            raise LostError(f"{door.url} answers 503")
        present = present_by_rank(reply.body)
        standing = door.standing
        if present and standing and not standing.fault and set(present) != set(standing.ranks):
            self._doors.shut(door, f"{door.url} has other ranks now")
        else:
            self._doors.heard(door, present)

    def close(self) -> None:
        for url in list(self._doors.all):
            self._leave(url)

    def _add(self, url: str, named: Named) -> None:
        try:
            door = Door(Server(address(url), self._clock), named)
        except PlacerError as error:  # whoever registered it wrote it
            log.warning("placer: %s: %s", named.engine, error)
            return
        self._doors.add(door)
        self._tasks[url] = asyncio.create_task(self._stay(door))

    def _leave(self, url: str) -> None:
        self._tasks.pop(url).cancel()
        self._missed_s.pop(url, None)
        self._doors.remove(url)

    async def _stay(self, door: Door) -> None:
        misses = 0
        while True:
            try:
                await self.look(door)
                misses = 0
            except LostError as error:
                misses += 1
                if misses >= MISSES or not door.is_open:
                    self._doors.shut(door, str(error))
            await self._clock.sleep(POLL_S if door.is_open else ASK_S)
