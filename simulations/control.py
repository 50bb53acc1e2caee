"""The control plane of a fleet whose engines are maps in memory, and an agent on every GPU, whose
messages are the protocol's bytes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controller.changes.plans import PlanState
from controller.config import Config, PoolPolicy
from controller.engines.in_memory import MemoryEngine, MemoryEngines, MemoryPlanner
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger, Record
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.migration.commands import Command, Copy, Outcome
from controller.ports import Unseen
from controller.server.callers import CALLER, Caller, Role
from controller.server.fleet_state import FleetState
from controller.server.services import Profiles
from controller.server.strangers import Spacing
from placer.model import ModelShape
from placer.placement import linear
from placer.plan import Hold, Infeasible, Plan
from placer.problem import Problem
from placer.topology import Topology
from placer.topology import preset as hardware
from placer.v1 import fleet_pb2, profile_pb2
from placer.virtual_clock import VirtualClock
from simulations.fleet import copy_s
from simulations.routing import drawn

RANKS, ENGINES = 24, 13  # 312 GPUs a pool
SLOTS_A_GPU = 12
PUSH_S, LOOK_S = 10.0, 30.0  # as agents and controllers do by default
STATUSES = 2  # of an agent between two pushes
TOKENS = 50_000  # that a worker counts between two pushes


@dataclass(frozen=True, slots=True)
class Heard:
    """What all agents say in a while. cpu: seconds a second, of whoever hears it"""

    bytes_per_s: float
    cpu: float


class Counted(Ledger):
    """bytes, count: that were written"""

    bytes = count = 0

    def put_all(self, records: Iterable[Record[Any]]) -> tuple[Record[Any], ...]:
        records = list(records)
        found = super().put_all(records)
        self.count += len(found)
        self.bytes += sum(len(one.text) for one in found)
        self.bytes += sum(len(one.blob) for one in records)
        return found


class Planner(MemoryPlanner):
    """took_s: CPU seconds of optimizers; rests: it is asked no more"""

    took_s, rests = 0.0, False

    async def answer(
        self, problem: Problem, optimizer: str, unseen: Unseen | None = None
    ) -> Plan | Hold | Infeasible:
        if self.rests:
            return Hold("it rests")
        begun_s = time.process_time()
        try:
            return await super().answer(problem, optimizer, unseen)
        finally:
            self.took_s += time.process_time() - begun_s


class Engines(MemoryEngines):
    """Engines whose copies take their time."""

    def __init__(
        self,
        engines: dict[tuple[str, str], MemoryEngine],
        model: ModelShape,
        topology: Topology,
        clock: VirtualClock,
    ) -> None:
        super().__init__(engines)
        self.model, self.topology, self.clock = model, topology, clock

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        if isinstance(command, Copy):
            await self.clock.sleep(copy_s(command, self.model, self.topology.local))
        return await super().carry_out(pool, engine, command)


class Control:
    """Pools of so many engines of RANKS ranks, which begin alike and want another placement."""

    def __init__(
        self, clock: VirtualClock, pools: int, engines: int, ledger: Path, model: ModelShape
    ) -> None:
        self.clock, self.model, topology = clock, model, hardware("h100")
        policy = PoolPolicy(
            topology, mode="automatic", optimizer="eplb", phase="decode", confirmations=1,
            max_moved=1.0, scratch_slots=16, dispatch="dedup",
        )  # fmt: skip
        config = Config(policy, every_s=LOOK_S)
        nodes = topology.resized(RANKS).nodes
        start = linear(model.layers, RANKS * SLOTS_A_GPU, model.experts, RANKS, nodes)
        self.places = [
            (f"pool-{pool:04}", f"engine-{engine:04}")
            for pool in range(pools)
            for engine in range(engines)
        ]
        maps = {place: MemoryEngine(start, model.expert_bytes) for place in self.places}
        self.engines = Engines(maps, model, topology, clock)
        self.planner = Planner(clock)
        self.ledger = Counted(ledger, FORMS)
        fleet = Fleet(lambda pool: policy.window_s, clock)
        self.loop = Loop(
            config, WatchedLedger(self.ledger, clock), fleet, self.engines, self.planner
        )
        spacing = Spacing(clock)
        self._counts, self._state = Profiles(self.loop, spacing), FleetState(self.loop, spacing)
        shares = drawn(model, 1.0, 0.5, 1, 0.0, 0).shares[0]
        self._load = np.floor(shares * TOKENS).astype("<u4").tobytes()
        self._said = 0

    @property
    def is_changed(self) -> bool:
        """Whether every pool has its plan."""
        plans = self.loop.arbiter.plans
        pools = {pool for pool, _ in self.places}
        return all(plans.in_state(pool, PlanState.APPLIED) for pool in pools)

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.loop.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def speak(self) -> Heard:
        """What all agents say between two pushes, heard at once."""
        self._said += 1
        size, took_s = 0, 0.0
        CALLER.set(Caller(Role.OPERATOR))
        for place in self.places:  # the messages of all at once would be most of the memory
            statuses, pushes = self._statuses(*place), self._pushes(*place)
            size += STATUSES * sum(one.ByteSize() for one in statuses) + sum(map(len, pushes))
            begun_s = time.process_time()
            await self._hear(statuses, pushes)
            took_s += time.process_time() - begun_s
        return Heard(size / PUSH_S, took_s / PUSH_S)

    async def _hear(self, statuses: Sequence[Any], pushes: Sequence[bytes]) -> None:
        async def each() -> AsyncIterator[bytes]:
            for one in pushes:
                yield one

        context: Any = None
        for one in [*statuses] * STATUSES:
            await self._state.Register(one, context)
        async for answer in self._counts.Push(each(), context):
            assert not answer.refused, answer.refused

    def _statuses(self, pool: str, engine: str) -> list[Any]:
        stands = self.engines.engines[pool, engine].placement
        model = self.model
        return [
            fleet_pb2.RegisterRequest(
                id=self._id(pool, engine, rank),
                worker=fleet_pb2.Worker(
                    name=f"worker-{rank}", model=model.name, layers=model.layers,
                    experts=model.experts, top_k=model.top_k, slots=stands.slots, ep_rank=rank,
                    ep_size=stands.gpus, can_apply=True, records=True,
                ),
                shape=json.dumps(asdict(model)),
                digest=stands.digest,
                actor="there",
            )
            for rank in range(stands.gpus)
        ]  # fmt: skip

    def _pushes(self, pool: str, engine: str) -> list[bytes]:
        model = self.model
        counts = profile_pb2.Counts(
            phase=profile_pb2.PHASE_DECODE, layers=model.layers, experts=model.experts,
            top_k=model.top_k, tokens=TOKENS, load=self._load,
        )  # fmt: skip
        return [
            profile_pb2.PushRequest(
                id=self._id(pool, engine, rank),
                sequence=self._said,
                window_s=PUSH_S,
                counts=[counts],
                steps=[profile_pb2.Steps(phase=profile_pb2.PHASE_DECODE, count=400, seconds=8.0)],
            ).SerializeToString()
            for rank in range(RANKS)
        ]

    def _id(self, pool: str, engine: str, rank: int) -> Any:
        name = f"worker-{rank}"
        return profile_pb2.WorkerId(pool=pool, engine=engine, worker=name, incarnation=1)
