"""One engine of two ranks behind each adapter of ``Engines``."""

from typing import Any, Protocol
from uuid import uuid4

import pytest

from controller.engines.in_memory import MemoryEngine, MemoryEngines
from controller.engines.vllm_engines import VllmEngines
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import (
    Command,
    Outcome,
)
from controller.ports import Engines
from placer.clock import SystemClock
from placer.files.plans import parse_plan
from placer.parallel import connect
from placer.placement import Placement
from placer.worker import GONE_S
from tests.controller.tiny_pool import (
    BEGIN_S,
    BYTES,
    HOME,
    POOL,
    a_clock,
    a_config,
    a_registration,
)

ENGINE = (POOL, "e0")


class Serving(Protocol):
    """One engine of two ranks, which stands at HOME."""

    @property
    def engines(self) -> Engines: ...

    def go_away(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.engine = MemoryEngine(HOME, BYTES)
        self.engines = MemoryEngines({ENGINE: self.engine})

    def go_away(self) -> None:
        self.engine.is_gone = True

    async def live(self) -> None:
        """Without a life of its own."""


class ByAgents:
    """vLLM's side: two ranks that register, and take up what is offered at their next step."""

    def __init__(self) -> None:
        self.clock = a_clock(BEGIN_S)
        self.fleet = Fleet(lambda pool: 300.0, self.clock)
        self.ledger = WatchedLedger(Ledger(None, FORMS), self.clock)
        self.engines = VllmEngines(self.fleet, self.ledger, a_config())
        self.offered: list[int] = []
        self.takes_up = True
        self.say()

    def say(self, *ranks: int, **said: Any) -> None:
        """Some ranks, else both, say how they stand."""
        for rank in ranks or (0, 1):
            told = a_registration("e0", f"w{rank}", rank=rank, **said)
            self.fleet.register(told)

    def go_away(self) -> None:
        self.fleet.pools[POOL].members["e0", "w1"].last_seen_s -= GONE_S

    async def live(self) -> None:
        async for epoch, file in self.engines.offers(*ENGINE, 0):
            self.offered.append(epoch)
            if self.takes_up:
                digest = parse_plan(file.decode(), "offer").placement.digest
                self.say(epoch=epoch, digest=digest)


class Remote:
    """What an engine's actor answers to ``RayEngines``."""

    def __init__(self) -> None:
        self.engine = MemoryEngine(HOME, BYTES)

    def placement(self) -> Placement:
        return self.engine.placement

    def carry_out(self, command: Command) -> Outcome:
        return self.engine.carry_out(command)


class ThroughRay:
    """An engine in a process of its own."""

    def __init__(self) -> None:
        ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
        if not ray.is_initialized():  # until ``one_ray`` ends it
            connect("local", object_store_memory=200 * 2**20)
        from controller.engines.ray_engines import NAMESPACE, RayEngines

        name = f"engine/{uuid4()}"
        actor = ray.remote(Remote).options(name=name, namespace=NAMESPACE, num_cpus=0)
        self.engine, self.kill = actor.remote(), ray.kill
        fleet = Fleet(lambda pool: 300.0, SystemClock())
        fleet.register(a_registration("e0", "w0", actor=name))
        self.engines = RayEngines(fleet)

    def go_away(self) -> None:
        self.kill(self.engine)

    async def live(self) -> None:
        """It does in its own process."""
