"""What puts a controller together out of its parts, wherever it is hosted: it knows ports only."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from controller import metrics
from controller.clock import SystemClock
from controller.config import Config
from controller.engines.fleet_engines import FleetEngines
from controller.engines.vllm_engines import VllmEngines
from controller.fleet.workers import Fleet
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.ports import Engines, Planner
from controller.server.security import Listening
from controller.server.serve import start


@dataclass(frozen=True, slots=True)
class Setup:
    """What `placer serve` was asked for. metrics: ``host:port`` for Prometheus, or empty"""

    config: Config
    listening: Listening = field(default_factory=lambda: Listening("127.0.0.1:7077"))
    ledger: Path | None = None
    metrics: str = ""
    detail: bool = False


async def run(
    setup: Setup,
    planner: Planner,
    by_actor: Callable[[Fleet], Engines],
    ready: Callable[[int], None],
) -> None:
    """One controller, until cancelled.

    by_actor: reaches the fleet's engines that registered with an actor's name
    ready:    is told the port
    """
    records = Ledger(setup.ledger)
    try:
        ledger = WatchedLedger(records, SystemClock())
        fleet = Fleet(lambda pool: setup.config.of(pool).window_s)
        by_agent = VllmEngines(fleet, ledger, setup.config)
        engines = FleetEngines(fleet, by_actor(fleet), by_agent)
        loop = Loop(setup.config, ledger, fleet, engines, planner)
        server, port = await start(loop, by_agent, setup.listening)
        if setup.metrics:
            metrics.serve(loop, setup.metrics, setup.detail)
        ready(port)
        try:
            await loop.run()
        finally:
            await server.stop(grace=1)
    finally:
        records.close()
