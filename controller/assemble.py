"""What puts a controller together out of its parts, wherever it is hosted: it knows ports only."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from controller import metrics
from controller.config import Config
from controller.engines.fleet_engines import FleetEngines, FleetMetrics
from controller.engines.http_metrics import HttpMetrics
from controller.engines.vllm_elastic import VllmElastic
from controller.engines.vllm_engines import VllmEngines
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.pool_policies import PoolPolicies
from controller.ports import Capacity, Engines, Metrics, Planner
from controller.server.security import Listening
from controller.server.serve import start
from placer.client import ADDRESS
from placer.clock import SystemClock

SWITCH_S = (
    0.001  # how long the loop waits for a thread that reads the ledger, say; Python's is 5 ms
)
EVERYWHERE = ("0.0.0.0", "[::]", "[::0]")
GRACE_S = 1.0  # for calls that are being answered when a controller ends


@dataclass(frozen=True, slots=True)
class Setup:
    """What `placer serve` was asked for. metrics, page: ``host:port`` for Prometheus and for
    browsers, or empty"""

    config: Config
    listening: Listening = field(default_factory=lambda: Listening("127.0.0.1:7077"))
    ledger: Path | None = None
    metrics: str = ""
    detail: bool = False
    page: str = ""

    @property
    def page_listening(self) -> Listening:
        """To the same people."""
        return replace(self.listening, address=self.page, harm="see the fleet")

    @property
    def option(self) -> str:
        """That commands on this host need to find the controller."""
        address = self.listening.address
        host, _, port = address.rpartition(":")
        here = f"127.0.0.1:{port}" if host in EVERYWHERE else address
        return "" if here == ADDRESS else f" --to {here}"


class ActorEngines(Engines, Metrics, Protocol):
    """To engines that are actors."""


@dataclass(frozen=True, slots=True)
class Controller:
    """One that listens. by_agent: the door to engines whose workers have agents"""

    loop: Loop
    by_agent: VllmEngines
    server: Any
    port: int


@asynccontextmanager
async def assembled(
    config: Config,
    listening: Listening,
    ledger: WatchedLedger,
    planner: Planner,
    engines: Callable[[Fleet, VllmEngines], Engines],
    metrics: Callable[[Fleet], Metrics] | None = None,
    capacity: Capacity | None = None,
) -> AsyncIterator[Controller]:
    """A controller that listens, whose loop is still to be run. ``engines``: the door to all of a
    fleet's, of which some may be behind the one that is given. metrics, capacity: None if nobody
    keeps them"""
    sys.setswitchinterval(SWITCH_S)
    policies = PoolPolicies(config, ledger)
    config = policies.config
    fleet = Fleet(lambda pool: config.of(pool).window_s, ledger.clock)
    by_agent = VllmEngines(fleet, ledger, config)
    told = metrics(fleet) if metrics is not None else None
    loop = Loop(config, ledger, fleet, engines(fleet, by_agent), planner, told, capacity)
    server, port = await start(loop, by_agent, policies, listening)
    try:
        yield Controller(loop, by_agent, server, port)
    finally:
        await server.stop(grace=GRACE_S)


async def run(
    setup: Setup,
    planner: Planner,
    by_actor: Callable[[Fleet], ActorEngines],
    ready: Callable[[int], None],
) -> None:
    """One controller, until cancelled.

    by_actor: reaches the fleet's engines that registered with an actor's name
    ready:    is told the port
    """

    def engines(fleet: Fleet, by_agent: VllmEngines) -> Engines:
        return FleetEngines(fleet, by_actor(fleet), VllmElastic(by_agent))

    def loads(fleet: Fleet) -> Metrics:
        return FleetMetrics(fleet, by_actor(fleet), HttpMetrics(fleet))

    with closing(Ledger(setup.ledger, FORMS)) as records:
        ledger = WatchedLedger(records, SystemClock())
        parts = setup.config, setup.listening, ledger, planner, engines, loads
        async with assembled(*parts) as controller:
            if setup.metrics:
                metrics.serve(controller.loop, setup.metrics, setup.detail)
            async with AsyncExitStack() as stack:
                if setup.page:
                    # Reads Jinja and aiohttp: only where there is a page.
                    from controller.page.live import Live
                    from controller.page.served import serving

                    live = Live(controller.loop, setup.option)
                    page = serving(controller.loop, live, setup.page_listening)
                    await stack.enter_async_context(page)
                ready(controller.port)
                await until_first(controller.loop.run(), ledger.hold())


async def until_first(*works: Coroutine[Any, Any, None]) -> None:
    """To the first end of several works without one. Raises what that raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
