"""Token tables, as they are given out: once, or to whoever watches whenever they are others."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from controller.fleet.pools import Pool
from controller.fleet.token_tables import TokenTables
from controller.fleet.workers import FleetError
from controller.loop import Loop
from controller.policies.policy import Kept
from controller.server.messages import sampled
from placer.cost.requests import costs_of
from placer.errors import PlacerError
from placer.placement import Placement
from placer.plan import Hold
from placer.v1.placement_pb2 import Seconds, TablesResponse

LOOK_S = 1.0  # at what may make other tables, for each watcher
AGAIN_S = 10.0  # until it is asked for them anyway
Given = tuple[bytes, Any]  # a file, and the seconds that schedulers weigh


class GivenTables:
    """What tables there are of the pools of one controller."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self._clock = loop, loop.ledger.clock
        self._tables = TokenTables(loop.traces, self._clock)
        self._paid: dict[str, bool] = {}  # what is written down last, by pool

    async def once(self, request: Any) -> AsyncIterator[Any]:
        """Raises PlacerError where there are none."""
        for answer in answers(*await self._given(request)):
            yield answer

    async def watched(self, request: Any) -> AsyncIterator[Any]:
        """Without an end."""
        told: Given | str | None = None
        while True:
            signs, news = self._signs(request.pool), await self._news(request)
            if news != told:
                told = news
                if isinstance(news, str):
                    yield TablesResponse(reason=news)
                else:
                    for answer in answers(*news):
                        yield answer
            until_s = self._clock.monotonic() + AGAIN_S
            while self._signs(request.pool) == signs and self._clock.monotonic() < until_s:
                await self._clock.sleep(LOOK_S)

    async def look_at_homes(self) -> None:
        pools = self._loop.fleet.pools.values()
        await self._loop.homings.look(pools, self._stands, self._tables.foretold)
        for pool, homing in self._loop.homings.of.items():
            if homing.pays != self._paid.get(pool, True):
                outcome = "by tables" if homing.pays else "by load"
                kept, ledger = Kept(outcome, homing.reason, policy="homes"), self._loop.ledger
                id = ledger.next_id("decision", "decision")
                ledger.write("decision", id, homing.reason, kept, pool=pool)
            self._paid[pool] = homing.pays

    async def _news(self, request: Any) -> Given | str:
        """Or why there are none, or none that are of use."""
        try:
            file, seconds = await self._given(request)
        except PlacerError as error:
            return " ".join(str(error).split())
        if seconds is None:
            return f"too little traffic of {request.pool} is known to weigh requests"
        return file, seconds

    async def _given(self, request: Any) -> Given:
        pool = self._loop.fleet.pool(request.pool)
        homing = self._loop.homings.of.get(pool.name)
        if homing is not None and not homing.pays:
            raise FleetError(f"requests of {pool.name}: {homing.reason}")
        file = await self._tables.of(pool, await self._served(pool, request.digest))
        return file, await self._seconds(pool)

    def _signs(self, name: str) -> object:
        """What is another as soon as there should be other tables: the maps that are served, and
        whether it pays."""
        homing = self._loop.homings.of.get(name)
        pool = self._loop.fleet.pools.get(name)
        members = pool.members.values() if pool is not None else ()
        return {one.registration.digest for one in members}, homing is None or homing.pays

    async def _seconds(self, pool: Pool) -> Any:
        """What a scheduler of the pool weighs; None while that is not known."""
        if (group := pool.group()) is None:
            return None
        asked = await self._loop.question(group)
        if isinstance(asked, Hold):
            return None
        costs = costs_of(asked[0])
        return Seconds(local=costs.local_s, prefill=costs.prefill_s, read=costs.read_s)

    async def _stands(self, pool: Pool) -> Placement:
        return await self._served(pool, "")

    async def _served(self, pool: Pool, digest: str) -> Placement:
        """The map of that digest, or the one that stands."""
        if not digest:
            if (group := pool.group()) is None:
                raise FleetError(
                    f"no engine of {pool.name} has a width that all its ranks agree on"
                )
            return await self._loop.arbiter.stands(group)
        found = self._loop.ledger.placement(digest)
        if (found.layers, found.experts) != (pool.model.layers, pool.model.experts):
            raise FleetError(
                f"placement {digest:.19}... is of {found.layers} layers x {found.experts} experts, "
                f"and {pool.name} serves {pool.model.dims}: is it another pool's?"
            )
        return found


def answers(file: bytes, seconds: Any) -> Iterator[Any]:
    for start in range(0, len(file), sampled.PART):
        end = start + sampled.PART
        yield TablesResponse(
            part=file[start:end], seconds=None if start else seconds, last=end >= len(file)
        )
