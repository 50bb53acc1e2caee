"""A controller in a thread: a true server and ledger, engines in memory, and time that flies."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controller.assemble import assembled
from controller.config import Config, PoolPolicy, Traces
from controller.engines.in_memory import MemoryEngine, MemoryEngines, MemoryPlanner
from controller.fleet.pools import Registration, WorkerId
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.migration.commands import Command, Copy, Outcome, Refused
from controller.server.security import Listening
from placer.placement import Placement
from placer.virtual_clock import VirtualClock
from placer.worker import Worker
from tests.agent.workers import IN_ORDER, a_worker
from tests.builders import a_topology


class FullEngine(MemoryEngine):
    """Has no room for copies."""

    def carry_out(self, command: Command) -> Outcome:
        if isinstance(command, Copy):
            return Refused("no room for copies")
        return super().carry_out(command)


@dataclass
class Running:
    """What a test sees of it. Engines are added, and then heard, by ``join``."""

    loop: Loop
    engines: MemoryEngines
    event_loop: asyncio.AbstractEventLoop
    clock: VirtualClock
    address: str = ""

    def do(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(doing, self.event_loop).result(timeout=60)

    def join(self, pool: str = "tiny", engine: str = "engine-1", kind: Any = MemoryEngine) -> Any:
        """One engine of two ranks; 2 layers x 4 experts stand in order."""
        found = kind(Placement(np.array(IN_ORDER), 4, 2), expert_bytes=1000)
        self.engines.engines[pool, engine] = found
        self.hear(pool, engine)
        return found

    def hear(
        self,
        pool: str = "tiny",
        engine: str = "engine-1",
        worker: Worker | None = None,
        **more: Any,
    ) -> None:
        id = WorkerId(pool, engine, "worker-0", 1)
        registration = Registration(id, worker or a_worker(), **more)

        async def register() -> None:
            self.loop.fleet.register(registration)

        self.do(register())

    def tick(self) -> None:
        async def tick_and_settle() -> None:
            await self.loop.tick()
            await self.loop.arbiter.settle()

        self.do(tick_and_settle())


@contextmanager
def a_controller(tokens: Path | None = None, traces: Any = None, **tls: Any) -> Iterator[Running]:
    """traces: what its pools sample; tls: as Listening has it"""
    clock = VirtualClock(time.time())
    event_loop = clock.loop()
    thread = threading.Thread(target=event_loop.run_forever)
    thread.start()
    stack, engines = AsyncExitStack(), MemoryEngines({})

    async def begin() -> Running:
        records = stack.enter_context(closing(Ledger(None, FORMS)))
        ledger = WatchedLedger(records, clock)
        listening = Listening("127.0.0.1:0", tokens=tokens, **tls)
        parts = (
            Config(PoolPolicy(a_topology(), traces=traces or Traces())),
            listening,
            ledger,
            MemoryPlanner(clock),
            lambda *_: engines,
        )
        found = await stack.enter_async_context(assembled(*parts))
        return Running(found.loop, engines, event_loop, clock, f"127.0.0.1:{found.port}")

    async def finish() -> None:
        await stack.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    running = asyncio.run_coroutine_threadsafe(begin(), event_loop).result(timeout=60)
    try:
        yield running
    finally:
        running.do(finish())
        event_loop.call_soon_threadsafe(event_loop.stop)
        thread.join()
        event_loop.close()
