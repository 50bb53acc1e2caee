"""A pool of two engines, 2 layers x 4 experts on 2 GPUs, behind a real server on this host."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from controller.assemble import assembled
from controller.config import Config, PoolPolicy
from controller.engines.in_memory import MemoryEngine, MemoryEngines, MemoryPlanner
from controller.engines.vllm_engines import VllmEngines
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.migration.commands import Command, Outcome, Stage
from controller.server.security import Listening
from placer.channel import Settings, open_aio_channel
from placer.clock import SystemClock
from placer.files.plans import plan_text
from placer.plan import Plan
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub, LedgerServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.policy_pb2_grpc import PolicyServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub
from tests.agent.workers import a_worker
from tests.builders import a_model, a_placement, by_hand

IN_ORDER = [[0, 1, 2, 3], [0, 1, 2, 3]]
SWAPPED = [[0, 2, 1, 3], [0, 2, 1, 3]]  # 1 and 2 change places
HOT = [[500, 500, 100, 100], [500, 500, 100, 100]]  # of 1,200 tokens; SWAPPED is even
ENGINES = ("engine-1", "engine-2")

POLICY = PoolPolicy(by_hand(), least_tokens=1000, max_moved=1.0, horizon_s=3600.0, window_s=3600.0)


class Gated(MemoryEngines):
    """Engines that stage nothing until ``gate`` is open."""

    def __init__(self, engines: dict[tuple[str, str], MemoryEngine]) -> None:
        super().__init__(engines)
        self.gate = asyncio.Event()
        self.gate.set()

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        if isinstance(command, Stage):
            await self.gate.wait()
        return await super().carry_out(pool, engine, command)


@dataclass
class World:
    """loop: behind the server; the stubs: of a channel to it"""

    loop: Loop
    engines: Gated
    offers: VllmEngines
    server: Any
    address: str
    channel: Any

    def __post_init__(self) -> None:
        self.profile = ProfileServiceStub(self.channel)
        self.placement = PlacementServiceStub(self.channel)
        self.fleet = FleetServiceStub(self.channel)
        self.ledger = LedgerServiceStub(self.channel)
        self.policy = PolicyServiceStub(self.channel)

    async def register(self, **said: Any) -> Any:
        return await self.fleet.Register(a_registration(**said))

    async def traffic(self, load: Sequence[Sequence[int]] = HOT) -> None:
        """Both engines are there, and the first has pushed."""
        for engine in ENGINES:
            await self.register(engine=engine)
        assert await self.pushed(a_push(counts=[a_count(load)])) == [(1, "")]

    async def pushed(self, *pushes: Any) -> list[tuple[int, str]]:
        """Number and refusal of each, over one stream."""
        stream = self.profile.Push(iter(pushes))
        return [(answer.sequence, answer.refused) async for answer in stream]

    async def proposed(self, rows: Sequence[Sequence[int]] = SWAPPED) -> Any:
        """The plan in a file is kept."""
        request = placement_pb2.ProposeRequest(pool="tiny", file=a_file(rows))
        return (await self.placement.Propose(request)).plan

    def stands(self, engine: str = "engine-1") -> list[list[int]]:
        return self.engines.engines["tiny", engine].placement.physical_to_logical.tolist()


def a_file(rows: Sequence[Sequence[int]] = SWAPPED, **more: Any) -> bytes:
    return plan_text(Plan(a_placement(rows, **more))).encode()


@dataclass(frozen=True)
class Setting:
    policy: PoolPolicy = POLICY
    ledger: Path | None = None
    tokens: Path | None = None
    token: str = ""
    address: str = "127.0.0.1:0"
    engines: dict[tuple[str, str], MemoryEngine] = field(
        default_factory=lambda: {
            ("tiny", name): MemoryEngine(a_placement(IN_ORDER)) for name in ENGINES
        }
    )


@asynccontextmanager
async def a_world(setting: Setting | None = None) -> AsyncIterator[World]:
    setting = setting or Setting()
    engines = Gated(setting.engines)
    listening = Listening(setting.address, tokens=setting.tokens)
    with closing(Ledger(setting.ledger, FORMS)) as records:
        clock = SystemClock()
        ledger, planner = WatchedLedger(records, clock), MemoryPlanner(clock)
        parts = Config(setting.policy), listening, ledger, planner, lambda *_: engines
        async with assembled(*parts) as found:
            address = f"127.0.0.1:{found.port}"
            async with open_aio_channel(address, Settings(setting.token)) as channel:
                yield World(found.loop, engines, found.by_agent, found.server, address, channel)
            engines.gate.set()
            await found.loop.arbiter.settle()
            await found.server.stop(grace=None)


async def until(true: Callable[[], Any]) -> Any:
    """What it says once it says something; a test does not wait for ever."""
    while not (found := true()):
        await asyncio.sleep(0.005)
    return found


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """The code and the message, of one line, that a call ends with."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        details = error.details() or ""
        assert "\n" not in details
        assert "Traceback" not in details
        return error.code(), details
    raise AssertionError(f"it was answered: {answer}")


def an_id(
    engine: str = "engine-1", worker: str = "worker-0", incarnation: int = 1, pool: str = "tiny"
) -> Any:
    return profile_pb2.WorkerId(pool=pool, engine=engine, worker=worker, incarnation=incarnation)


def a_registration(
    engine: str = "engine-1",
    worker: str = "worker-0",
    incarnation: int = 1,
    pool: str = "tiny",
    shape: str | None = None,
    changes: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """changes: of its Worker"""
    said = asdict(replace(a_worker(), name=worker, **(changes or {})))
    return fleet_pb2.RegisterRequest(
        id=an_id(engine, worker, incarnation, pool),
        worker=fleet_pb2.Worker(**said),
        shape=json.dumps(asdict(a_model())) if shape is None else shape,
        **more,
    )


def a_count(rows: Sequence[Sequence[int]] = HOT, /, **changes: Any) -> Any:
    """Of decoding; as many tokens as the first layer says."""
    table = np.array(rows, dtype="<u4")
    fields: dict[str, Any] = {
        "phase": profile_pb2.PHASE_DECODE, "layers": table.shape[0], "experts": table.shape[1],
        "top_k": 1, "tokens": int(table[0].sum()), "sequences": 1, "load": table.tobytes(),
    }  # fmt: skip
    return profile_pb2.Counts(**{**fields, **changes})


def a_push(sequence: int = 1, counts: Sequence[Any] | None = None, **id: Any) -> Any:
    counts = [a_count()] if counts is None else counts
    return profile_pb2.PushRequest(id=an_id(**id), sequence=sequence, counts=counts)
