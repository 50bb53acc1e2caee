"""A local engine as a Ray actor, which registers and pushes as vLLM's workers do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from controller.engines.ray_engines import NAMESPACE
from controller.local_engine.api_server import ApiServer
from controller.local_engine.local_engine import EngineStatus, LocalEngine
from controller.migration.commands import Command, Outcome
from controller.samples import Sample
from placer.agent.grpc_sink import GrpcSink
from placer.agent.recording import PAUSE_S, Recording
from placer.agent.reporter import Reporter
from placer.agent.sampling import Sampling
from placer.clock import Readings, SystemClock
from placer.placement import Placement
from placer.plan import Plan
from placer.worker import Identity, Worker

CONCURRENCY = 128  # requests that an engine's callers may wait for at once


@dataclass(frozen=True, slots=True)
class Serving:
    """One engine of a pool.

    model: its folder; address: of the controller
    smallest, largest: ranks that it can have; 0 for as many as it starts with
    """

    pool: str
    engine: str
    model: Path
    ranks: int
    slots: int
    address: str
    smallest: int = 0
    largest: int = 0

    @property
    def standbys(self) -> int:
        """Ranks and devices that wait."""
        return max(self.largest - self.ranks, 0)

    @property
    def actor(self) -> str:
        return f"engine/{self.pool}/{self.engine}"


class EngineActor:
    """Methods may be called at once, each on a thread of its own."""

    def __init__(self, serving: Serving) -> None:
        self.engine = LocalEngine(
            serving.model,
            serving.ranks,
            serving.slots,
            smallest=serving.smallest,
            standbys=serving.standbys,
            spares=serving.standbys,
        )
        self._server = ApiServer(self.engine)
        identity = Identity(serving.pool, serving.engine, serving.actor, api=self._server.url)
        clock, applier = SystemClock(), EngineApplier(serving, self.engine)
        worker = applier.worker
        sink = GrpcSink(serving.address, worker, identity, self.engine.shape, clock)
        self._reporter = Reporter(worker, sink, EngineSource(self.engine, clock), applier, clock)
        self._reporter.start()

    def generate(self, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], float]:
        """The tokens, and the longest time between two of them."""
        request = self.engine.submit(prompt, max_tokens)
        return request.tokens(), request.longest_gap_s

    def placement(self) -> Placement:
        return self.engine.placement

    def carry_out(self, command: Command) -> Outcome:
        return self.engine.carry_out(command)

    def sample(self) -> Sample:
        return self.engine.sample

    def pids(self) -> list[int]:
        return self.engine.pids()

    def status(self) -> EngineStatus:
        return self.engine.status

    def close(self) -> None:
        self._reporter.close()
        self._server.close()
        self.engine.close()


class EngineApplier:
    """Tells what the engine is now; changes come to it through the actor."""

    epoch = 0

    def __init__(self, serving: Serving, engine: LocalEngine) -> None:
        self._serving, self._engine = serving, engine

    @property
    def digest(self) -> str:
        return self._engine.placement.digest

    @property
    def changes(self) -> str:
        """The map stands for it."""
        return self.digest

    @property
    def worker(self) -> Worker:
        shape, placement = self._engine.shape, self._engine.placement
        return Worker(
            name="engine",
            model=str(self._serving.model),
            layers=shape.layers,
            experts=shape.experts,
            top_k=shape.top_k,
            slots=placement.slots,
            ep_rank=0,
            ep_size=placement.gpus,
            can_apply=True,
            records=True,
            can_resize=bool(self._serving.smallest or self._serving.standbys),
        )

    def offer(self, epoch: int, plan: Plan) -> str:
        return "it takes its changes from the controller, through its actor"

    def condition(self) -> str:
        return ""


class EngineSource:
    """Gives a reporter what was recorded, every few seconds."""

    def __init__(self, engine: LocalEngine, clock: Readings) -> None:
        self._engine, self._clock, self._due_s = engine, clock, 0.0

    def sample(self, how: Sampling | None) -> None:
        self._engine.sample_requests(how)

    def take(self) -> Recording:
        return self._engine.record()

    def take_idle(self) -> Recording | None:
        """The engine counts by itself, so it is always time if it was long ago."""
        if self._clock.monotonic() < self._due_s:
            return None
        self._due_s = self._clock.monotonic() + PAUSE_S
        return self.take()


def start_engine(serving: Serving) -> Any:
    """The handle of a named actor, in the cluster that this process is connected to."""
    actor: Any = ray.remote(EngineActor)
    options = {"name": serving.actor, "namespace": NAMESPACE, "max_concurrency": CONCURRENCY}
    return actor.options(num_cpus=0, **options).remote(serving)
