"""A controller in a thread: a true server and ledger, engines in memory, and time that flies."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controller.adapters.memory import MemoryEngine, MemoryEngines, MemoryPlanner
from controller.adapters.vllm_engines import VllmEngines
from controller.clock import ManualClock
from controller.config import Config, PoolPolicy
from controller.fleet import Fleet, Registration, WorkerId
from controller.journal import Journal
from controller.loop import Loop
from controller.migration.commands import Command, Copy, Outcome, Refused
from controller.server.security import Listening
from controller.server.serve import start
from controller.store import Ledger
from placer.placement import Placement
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
    address: str = ""

    def do(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(doing, self.event_loop).result(timeout=60)

    def join(self, pool: str = "tiny", engine: str = "engine-1", kind: Any = MemoryEngine) -> Any:
        """One engine of two ranks; 2 layers x 4 experts stand in order."""
        found = kind(Placement(np.array(IN_ORDER), 4, 2), expert_bytes=1000)
        self.engines.engines[pool, engine] = found
        self.hear(pool, engine)
        return found

    def hear(self, pool: str = "tiny", engine: str = "engine-1", **more: Any) -> None:
        said = Registration(WorkerId(pool, engine, "worker-0", 1), a_worker(), **more)

        async def register() -> None:
            self.loop.fleet.register(said, self.loop.journal.clock.now_s())

        self.do(register())

    def tick(self) -> None:
        async def tick_and_settle() -> None:
            await self.loop.tick()
            await self.loop.desk.settle()

        self.do(tick_and_settle())


@contextmanager
def a_controller(tokens: Path | None = None, **tls: Any) -> Iterator[Running]:
    """tls: as Listening has it"""
    event_loop = asyncio.new_event_loop()
    thread = threading.Thread(target=event_loop.run_forever)
    thread.start()
    config = Config(PoolPolicy(a_topology()))
    ledger = Ledger(None)
    journal, engines = Journal(ledger, ManualClock(time.time())), MemoryEngines({})
    fleet = Fleet(lambda pool: config.of(pool).window_s)

    async def begin() -> tuple[Running, Any]:
        loop = Loop(config, journal, fleet, engines, MemoryPlanner())
        offers = VllmEngines(fleet, journal, config)
        listening = Listening("127.0.0.1:0", tokens=tokens, **tls)
        server, port = await start(loop, offers, listening)
        return Running(loop, engines, event_loop, f"127.0.0.1:{port}"), server

    async def finish() -> None:
        await server.stop(grace=0.5)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    running, server = asyncio.run_coroutine_threadsafe(begin(), event_loop).result(timeout=60)
    try:
        yield running
    finally:
        running.do(finish())
        event_loop.call_soon_threadsafe(event_loop.stop)
        thread.join()
        event_loop.close()
        ledger.close()
