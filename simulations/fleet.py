"""A fleet in virtual time: modelled engines, and the controller that ships."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controller.config import Config
from controller.engines.in_memory import MemoryEngines, MemoryPlanner
from controller.engines.memory_capacity import MemoryCapacity
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.migration.commands import (
    Command,
    Copy,
    Done,
    Outcome,
    Switch,
    Transfer,
    Verify,
)
from controller.ports import EngineLostError
from controller.samples import Sample
from placer.model import ModelShape
from placer.placement import Placement
from placer.topology import Link
from placer.virtual_clock import VirtualClock
from simulations.modelled import PoolModel

PUSH_S = 30.0  # agents push so often, as those of DeepSeek-V3 do
CONTENTION = 1.05  # steps take so much longer while experts move
SOLVE_S = 2.0  # virtual seconds of a plan
MINUTE_S = 60.0
TOLD = 10_000  # decisions, operations and plans of a run, at most, that its results tell of
BEGINS = 1_800_000_000.0  # unix seconds: a Friday of 2027, 08:00 UTC


class ToldLedger(Ledger):
    """Keeps as many decisions as results tell of: those of weeks, of which controllers keep days"""

    def prune(self, kind: str, keep: int, since_s: float, needed: Collection[str] = ()) -> int:
        return super().prune(kind, TOLD if kind == "decision" else keep, since_s, needed)


@dataclass(frozen=True, slots=True)
class Incident:
    """From ``at_s`` on an engine takes no requests for ``lasts_s``.

    kind: "crash": it is lost with all that it had, and starts anew; "upgrade": it ends what it has,
        and starts anew; "drain": it ends what it has, and goes on
    """

    at_s: float
    pool: str
    engine: str
    lasts_s: float
    kind: str = "crash"


@dataclass(eq=False)
class Series:
    """What a pool was like, minute by minute."""

    at_s: list[float] = field(default_factory=list)
    gpus: list[int] = field(default_factory=list)
    balancedness: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)


class ModelledEngines(MemoryEngines):
    """Their copies take time, and what changes is served from then on."""

    def __init__(self, pools: Mapping[str, PoolModel], clock: VirtualClock, fleet: Fleet) -> None:
        found = {(pool, name): one for pool in pools for name, one in pools[pool].engines.items()}
        super().__init__(found)
        self.pools, self.clock, self.fleet = pools, clock, fleet

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        model = self.pools[pool]
        at = list(model.engines).index(engine)
        if isinstance(command, Copy | Transfer):
            model.advance(self.clock.monotonic())
            model.serving.state.slow[at] = CONTENTION
            shape, link = model.hardware.model, model.hardware.topology.local
            if isinstance(command, Copy):
                await self.clock.sleep(copy_s(command, shape, link))
            else:
                await self.clock.sleep(_transfer_s(model.engines[engine].placement, shape, link))
            model.advance(self.clock.monotonic())
            model.serving.state.slow[at] = 1.0
        outcome = await super().carry_out(pool, engine, command)
        if isinstance(command, Switch) and isinstance(outcome, Done):
            outcome = replace(outcome, pause_s=model.hardware.speeds.switch_s)
        if isinstance(command, Switch | Verify):  # in between, steps are as they were
            model.advance(self.clock.monotonic())
            model.changed()
            model.register(self.fleet, engine)
        return outcome

    async def sample(self, pool: str, engine: str) -> Sample:
        model = self.pools[pool]
        at = list(model.engines).index(engine)
        if model.engines[engine].is_gone:
            raise EngineLostError(f"{engine} of {pool} does not answer")
        model.advance(self.clock.monotonic())
        return model.serving.samples(at)


def copy_s(command: Copy, model: ModelShape, link: Link) -> float:
    """The fullest rank's bytes, across its link."""
    ranks = [one.gpu for one in command.round.copies if one.gpu != one.source]
    most = max(np.bincount(ranks)) if ranks else 0
    return int(most) * model.expert_bytes / link.bytes_per_s


def _transfer_s(placement: Placement, model: ModelShape, link: Link) -> float:
    """All of a rank's, across its link."""
    slots = placement.slots_per_gpu * model.layers
    return (slots * model.expert_bytes + model.other_bytes) / link.bytes_per_s


class World:
    """Pools, what happens to them, and a controller unless ``config`` is None. capacity: GPUs that
    there are for all, and the seconds that another one takes to come"""

    def __init__(
        self,
        pools: Mapping[str, PoolModel],
        incidents: Sequence[Incident],
        config: Config | None,
        capacity: tuple[int, float],
        seed: int,
    ) -> None:
        self.pools, self.config = pools, config
        self.clock, self.begins = VirtualClock(BEGINS, seed), BEGINS
        self.series = {name: Series() for name in pools}
        self.ledger = ToldLedger(None, FORMS)
        self.incidents, self._capacity = incidents, capacity
        self._due = sorted(
            (moment, order, one, begins)
            for order, one in enumerate(incidents)
            for moment, begins in ((one.at_s, True), (one.at_s + one.lasts_s, False))
        )

    def run(self, seconds: float, passed: Callable[[float], None]) -> None:
        """The ledger stays open, for whoever asks what happened. passed: is told of seconds"""
        self.clock.run(self._run(seconds, passed))

    async def _run(self, seconds: float, passed: Callable[[float], None]) -> None:
        config, fleet = self.config, None
        tasks = []
        if config is not None:
            fleet = Fleet(lambda pool: config.of(pool).window_s, self.clock)
            engines = ModelledEngines(self.pools, self.clock, fleet)
            ledger, planner = WatchedLedger(self.ledger, self.clock), MemoryPlanner
            has = {name: int(one.serving.state.wanted.sum()) for name, one in self.pools.items()}
            capacity = MemoryCapacity(self.clock, *self._capacity, has)
            loop = Loop(
                config, ledger, fleet, engines, planner(self.clock, SOLVE_S), engines, capacity
            )
            tasks.append(asyncio.create_task(loop.run()))
        self._happen(0.0)
        for now_s in self._moments(seconds):
            await self.clock.sleep(now_s - self.clock.monotonic())
            for model in self.pools.values():
                model.advance(now_s)
                if fleet is not None and now_s % PUSH_S == 0:
                    model.push(fleet, now_s)
            self._happen(now_s)
            if now_s % MINUTE_S == 0:
                self._write(now_s)
                passed(MINUTE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _moments(self, seconds: float) -> Sequence[float]:
        """At which agents push, or something happens."""
        pushes = (PUSH_S * count for count in range(1, int(seconds / PUSH_S) + 1))
        return sorted({*pushes, *(at_s for at_s, *_ in self._due if 0 < at_s < seconds), seconds})

    def _happen(self, now_s: float) -> None:
        while self._due and self._due[0][0] <= now_s:
            _, _, incident, begins = self._due.pop(0)
            model = self.pools[incident.pool]
            at = list(model.engines).index(incident.engine)
            if not begins:
                (model.open if incident.kind == "drain" else model.start)(at)
            elif incident.kind == "crash":
                model.lose(at)
            else:
                model.close(at)

    def _write(self, now_s: float) -> None:
        for name, model in self.pools.items():
            series, state = self.series[name], model.serving.state
            series.at_s.append(now_s)
            series.gpus.append(int(state.wanted.sum()))
            series.balancedness.append(round(model.balancedness, 4))
            series.waiting.append(int(state.queued.sum()))
            series.running.append(int(state.begun.sum()))
