"""Where engines are, as a controller knows it; asked beside the data path."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from controller.router.pool.endpoints import Listed
from controller.router.pool.table_watch import KnownTables, TableWatch
from controller.router.wire.addresses import AddressError, address
from placer.channel import Channels, Settings
from placer.client import OPTIONS, Controller
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.v1 import fleet_pb2

EVERY_S = 2.0

log = logging.getLogger("placer.front")


class Discovery:
    """Asks a controller again and again. While none answers, all stays as it was."""

    def __init__(self, address: str, pool: str, clock: SystemClock, vocabulary: str = "") -> None:
        """vocabulary: as ``TableWatch`` has it"""
        self._address, self._settings = address, Settings.of_environment()
        self._channels = Channels(address, self._settings, log, OPTIONS)
        self._pool, self._clock = pool, clock
        self._connect()
        self._beside = ThreadPoolExecutor(1, "discovery")
        self._tables = TableWatch(lambda: self._controller, pool, clock, vocabulary)
        self._condition = ""

    async def run(
        self,
        name: Callable[[Mapping[str, Listed]], None],
        know: Callable[[Mapping[str, str], KnownTables | None, float | None], None],
    ) -> None:
        """name: told of addresses; know: of the engines' maps, by digest, of new tables of one of
        them, if there are, and of the control group's share, if the pool has one of its own"""
        running = asyncio.get_running_loop()
        self._tables.begin()
        while True:
            try:
                listed, maps, control = await running.run_in_executor(self._beside, self.ask)
                name(listed)
                self._tell("")
                know(maps, self._tables.newest(), control)
            except PlacerError as error:
                self._tell(str(error))
            await self._clock.sleep(EVERY_S)

    def ask(self) -> tuple[dict[str, Listed], dict[str, str], float | None]:
        """Engines by address, the digests of their maps by name, and the control group's share, if
        the pool has one. Raises PlacerError."""
        if self._channels.get() is not self._channel:
            self._connect()
        request = fleet_pb2.StatusRequest(pool=self._pool)
        status = self._controller.ask(self._controller.fleet.Status, request)
        found: dict[str, Listed] = {}
        engines = [one for pool in status.pools for one in pool.engines]
        for engine in engines:
            for endpoint in engine.endpoints:
                try:
                    url = address(endpoint.address).url
                except AddressError as error:
                    log.debug("placer: %s: %s", engine.name, error)
                    continue
                found[url] = Listed(engine.name, tuple(endpoint.ranks))
        if not found:
            raise PlacerError(
                f"no engine of {self._pool} says where it answers: set PLACER_API where they start"
            )
        shares = [pool.control for pool in status.pools if pool.HasField("control")]
        return found, {one.name: one.digest for one in engines}, next(iter(shares), None)

    def close(self) -> None:
        self._beside.shutdown(wait=False, cancel_futures=True)
        self._tables.close()
        self._channels.close()

    def _connect(self) -> None:
        self._channel = self._channels.get()
        self._controller = Controller(self._address, self._channel, self._settings)

    def _tell(self, condition: str) -> None:
        if condition and condition != self._condition:
            log.warning("placer: %s: going on with the engines that are known", condition)
        elif self._condition and not condition:
            log.warning("placer: the controller answers again")
        self._condition = condition
