"""A whole controller through two days, as an operator would have seen them: agents that push over
gRPC, plans that take a while, copies within a budget, an engine that hangs, a restart."""

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import Any

from controller.assemble import assembled
from controller.changes.operations import Operation
from controller.config import Config
from controller.engines.in_memory import MemoryEngine, MemoryEngines, MemoryPlanner
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import Command, Copy, Outcome
from controller.ports import Unseen
from controller.server.security import Listening
from placer.channel import Settings, open_aio_channel
from placer.plan import Hold, Infeasible, Plan
from placer.problem import Problem
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub
from placer.virtual_clock import VirtualClock
from tests.controller.server.tiny_server import a_count, a_push, a_registration
from tests.controller.tiny_pool import BYTES, HOME, a_policy

HOUR_S = 3_600.0
BEGINS = 1_800_000_000.0  # a Friday of 2027, 08:00 UTC
EVERY_S = 1_200.0
PUSH_S = 900.0
SOLVE_S = 45.0
COPY_S = 15.0
COOLDOWN_S = 2 * HOUR_S
HANGS = (6.0, 6.7)  # hours in which one engine answers no command
RESTARTS = (25.0, 25.5)  # hours in which no controller runs
NAMES = ("engine-1", "engine-2")
ONE, OTHER = [[400, 400, 100, 100]] * 2, [[400, 100, 400, 100]] * 2
LOADS = {0: ONE, 6: OTHER, 24: ONE, 25: OTHER}  # from an hour on
CONFIG = Config(
    a_policy(
        mode="automatic", confirmations=2, cooldown_s=COOLDOWN_S, window_s=2_400.0,
        horizon_s=HOUR_S, bytes_per_minute=BYTES,
    ),
    every_s=EVERY_S,
)  # fmt: skip


class Engines(MemoryEngines):
    """Copies take a while."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__({("tiny", name): MemoryEngine(HOME, BYTES) for name in NAMES})
        self.clock = clock

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        if engine == NAMES[1] and HANGS[0] <= self.clock.monotonic() / HOUR_S < HANGS[1]:
            await self.clock.sleep(HOUR_S)
        if isinstance(command, Copy):
            await self.clock.sleep(COPY_S)
        return await super().carry_out(pool, engine, command)


class Planner(MemoryPlanner):
    """On a machine on which all takes longer. pause_s: of a thread, in real time"""

    def __init__(self, clock: VirtualClock, pause_s: float) -> None:
        super().__init__(clock, SOLVE_S)
        self.pause_s = pause_s

    async def answer(
        self, problem: Problem, optimizer: str, unseen: Unseen | None = None
    ) -> Plan | Hold | Infeasible:
        await asyncio.to_thread(time.sleep, self.pause_s)
        return await super().answer(problem, optimizer, unseen)


async def an_agent(name: str, clock: VirtualClock, address: str, first_s: float) -> None:
    """Of one engine. Time waits for what is on the wire."""
    async with open_aio_channel(address, Settings("")) as channel:
        await clock.sleep(first_s)
        who: dict[str, Any] = {"engine": name, "incarnation": int(clock.now() * 1e9)}
        with clock.busy():
            await FleetServiceStub(channel).Register(a_registration(**who))
            pushes = ProfileServiceStub(channel).Push()
        for number in range(1, 10_000):
            rows = LOADS[max(hour for hour in LOADS if hour * HOUR_S <= clock.monotonic())]
            with clock.busy():
                await pushes.write(a_push(number, [a_count(rows)], **who))
                assert (await pushes.read()).refused == ""
            await clock.sleep(PUSH_S)


async def life(records: Ledger, engines: Engines, ends: float, pause_s: float) -> None:
    """One of a controller, which is then killed. ends: at this hour"""
    clock = engines.clock
    ledger, planner = WatchedLedger(records, clock), Planner(clock, pause_s)
    parts = CONFIG, Listening("127.0.0.1:0"), ledger, planner, lambda *_: engines
    async with assembled(*parts) as controller, asyncio.TaskGroup() as tasks:
        working = [tasks.create_task(controller.loop.run())]
        for place, name in enumerate(NAMES):  # at moments at which nobody else acts
            first_s, address = 1.25 + place / 2, f"127.0.0.1:{controller.port}"
            working.append(tasks.create_task(an_agent(name, clock, address, first_s)))
        await clock.sleep(ends * HOUR_S - clock.monotonic())
        for task in working:
            task.cancel()


def two_days(records: Ledger, pause_s: float = 0.0) -> list[str]:
    """All that the ledger has at their end."""
    clock = VirtualClock(BEGINS)
    engines = Engines(clock)

    async def lives() -> None:
        await life(records, engines, RESTARTS[0], pause_s)
        await clock.sleep(RESTARTS[1] * HOUR_S - clock.monotonic())
        await life(records, engines, 48.0, pause_s)

    clock.run(lives())
    with closing(sqlite3.connect(":memory:")) as copy:
        records._connection.backup(copy)
        lines = list(copy.iterdump())
    return [line for line in lines if not line.startswith('INSERT INTO "ledger"')]  # whose it was


def hour(at_s: float) -> float:
    return (at_s - BEGINS) / HOUR_S


def test_two_days_pass_in_seconds_and_twice_alike_however_fast_the_machine() -> None:
    """Traffic changes at 6 h, and the second engine hangs: each command that it does not answer
    takes its minute, then both go back, and twice the cool-down begins. At 25 h traffic is as it
    was, within a cool-down that a restart does not shorten."""
    with closing(Ledger(None, FORMS)) as once, closing(Ledger(None, FORMS)) as again:
        assert two_days(once) == two_days(again, pause_s=0.003)
        ended = once.newest("operation")[::-1]
    operations: list[Operation] = [record.value for record in ended]
    phases = [one.phase for one in operations]
    assert phases == ["succeeded", "rolled back", "succeeded", "succeeded", "succeeded"]
    assert operations[1].why == "engine-2: staging, round 1 of 2: no answer in time"
    assert [int(hour(one.begun_s)) for one in operations] == [0, 6, 11, 24, 26]
    for before, after, cooldown_s in ((1, 2, 2 * COOLDOWN_S), (3, 4, COOLDOWN_S)):
        rested_s = operations[after].begun_s - ended[before].at_s
        assert cooldown_s <= rested_s <= cooldown_s + EVERY_S + SOLVE_S
