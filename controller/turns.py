"""Begins what waits for its turn: who came first, but for what cannot begin yet."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from controller.changes.arbiter import Arbiter
from controller.changes.operations import Operation
from controller.config import Config
from controller.ledger.ledger import Record
from controller.loads import Loads

LOOK_S = 1.0  # how often it is looked whether GPUs have come, and what was at work has ended


class Turns:
    """Begins what waits. attempt: does something; what goes wrong is a condition of that name"""

    def __init__(
        self,
        config: Config,
        arbiter: Arbiter,
        loads: Loads,
        attempt: Callable[[str, Awaitable[None]], Awaitable[None]],
    ) -> None:
        self.config, self.arbiter, self.loads, self._attempt = config, arbiter, loads, attempt
        self._turn = asyncio.Lock()
        self._names: set[str] = set()

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            await self.arbiter.ledger.clock.sleep(LOOK_S)
            await self._attempt("turns", self.look())

    async def look(self) -> None:
        async with self._turn:
            waiting = [(_name(record), record) for record in self.arbiter.queue.waiting]
            names = {name for name, _ in waiting}
            for name in self._names - names:
                await self._attempt(name, _nothing())
            self._names = names
            for name, record in waiting:
                is_plan = not isinstance(record.value, Operation)
                if self.arbiter.running is not None or (is_plan and self._is_closed(record.pool)):
                    continue
                await self._attempt(name, self._begin(record))
            await self._attempt("capacity", self.loads.settle())

    async def _begin(self, record: Record[Any]) -> None:
        if isinstance(record.value, Operation):
            await self.loads.begin(record)
        else:
            await self.arbiter.begin(record, key="", reason=record.reason)

    def _is_closed(self, pool: str) -> bool:
        return bool(self.config.of(pool).closed(self.arbiter.ledger.clock.now()))


def _name(record: Record[Any]) -> str:
    if isinstance(record.value, Operation):
        return f"{record.pool}: {record.id}"
    return f"{record.pool}: approved plans"


async def _nothing() -> None:
    """Nothing goes wrong."""
