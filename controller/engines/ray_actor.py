"""A local engine as a Ray actor, which registers and pushes as vLLM's workers do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from controller.engines.ray_engines import NAMESPACE
from controller.local_engine.local_engine import EngineStatus, LocalEngine
from controller.migration.commands import Command, Outcome
from controller.samples import Sample
from placer.agent.grpc_sink import GrpcSink
from placer.agent.recording import PAUSE_S, Recording
from placer.agent.reporter import Reporter
from placer.clock import Readings, SystemClock
from placer.placement import Placement
from placer.worker import Identity, Worker

CONCURRENCY = 128  # requests that an engine's callers may wait for at once


@dataclass(frozen=True, slots=True)
class Serving:
    """One engine of a pool. model: its folder; address: of the controller"""

    pool: str
    engine: str
    model: Path
    ranks: int
    slots: int
    address: str

    @property
    def actor(self) -> str:
        return f"engine/{self.pool}/{self.engine}"


class EngineActor:
    """Methods may be called at once, each on a thread of its own."""

    def __init__(self, serving: Serving) -> None:
        self.engine = LocalEngine(serving.model, serving.ranks, serving.slots)
        shape = self.engine.shape
        worker = Worker(
            name="engine",
            model=str(serving.model),
            layers=shape.layers,
            experts=shape.experts,
            top_k=shape.top_k,
            slots=serving.slots,
            ep_rank=0,
            ep_size=serving.ranks,
            can_apply=True,
            records=True,
        )
        identity = Identity(serving.pool, serving.engine, serving.actor)
        clock = SystemClock()
        sink = GrpcSink(serving.address, worker, identity, shape, clock)
        self._courier = Reporter(worker, sink, Recorder(self.engine, clock), None, clock)
        self._courier.start()

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
        self._courier.close()
        self.engine.close()


class Recorder:
    """What a reporter takes from, every few seconds."""

    def __init__(self, engine: LocalEngine, clock: Readings) -> None:
        self._engine, self._clock, self._due_s = engine, clock, 0.0

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
