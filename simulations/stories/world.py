"""One story from beginning to end: controllers that live and die, faults, and all heals."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from controller.changes.operations import Phase
from controller.config import Config, PoolPolicy
from controller.engines.in_memory import MemoryPlanner
from controller.fleet.workers import Fleet
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.server.callers import CALLER, Caller, Role
from placer.topology import Gpu, Link, Topology
from placer.virtual_clock import VirtualClock
from simulations.stories.agents import PUSH_S, Agents
from simulations.stories.network import BYTES, Network
from simulations.stories.operators import Operators, Services
from simulations.stories.story import LASTS_S, Event, Story, TinyPool, a_map
from simulations.stories.watch import Disk, Watch, Wrong

BEGINS = 1_800_000_000.0  # unix seconds
EVERY_S = 60.0
SOLVE_S = 1.0
ENDS_S = 3 * 3600.0  # what has not ended by then never will
RATE = 600 * BYTES  # a minute
FREE = Link(bytes_per_s=1e30, latency_s=0.0)
# An expert takes a microsecond a token.
HARDWARE = Topology("by hand", 2, 1, Gpu(384e6, 384e6, 10_000, 1e30), FREE, FREE)


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a story. digest: of all that was written down, and asked of engines"""

    wrong: Wrong | None
    operations: int
    commands: int
    kills: int
    digest: str


def tell(story: Story) -> Told:
    """The same story is the same, to the byte."""
    clock = VirtualClock(BEGINS, story.seed)
    return clock.run(World(story, clock).run())


class World:
    """services: of the controller that lives; None if none does"""

    def __init__(self, story: Story, clock: VirtualClock) -> None:
        self.story, self.clock = story, clock
        self.pools = {f"p{at}": pool for at, pool in enumerate(story.pools)}
        policies = {name: _policy(pool) for name, pool in self.pools.items()}
        self.watch = Watch(Config(policies["p0"], policies, every_s=EVERY_S))
        self.disk = Disk(self.watch)
        self.network = Network(self.pools, story.events, clock, self.watch, self.beside, self.kill)
        self.operators = Operators(clock, self.watch, lambda: self.services)
        there = self.network.there
        self.agents = Agents(self.pools, there, clock, self.watch, lambda: self.services)
        self.services: Services | None = None
        self.kills = 0
        self._own: set[asyncio.Task[Any]] = set()

    def beside(self, doing: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """A task that is no controller's."""
        task = asyncio.create_task(doing)
        self._own.add(task)
        task.add_done_callback(self._own.discard)
        return task

    async def run(self) -> Told:
        CALLER.set(Caller(Role.OPERATOR))
        main = asyncio.current_task()
        assert main is not None
        self._own.add(main)
        self.start()
        self.beside(self.agents.run())
        for event in self.story.events:
            if not event.on:
                self.beside(self._at(event))
        try:
            await self._follow()
        finally:
            await _end(asyncio.all_tasks() - {main})
        self.watch.is_whole(self.disk)
        return self._told()

    def start(self) -> None:
        """A controller that knows nothing but what was written down."""
        config, ledger = self.watch.config, WatchedLedger(self.disk, self.clock)
        fleet = Fleet(lambda pool: config.of(pool).window_s, self.clock)
        loop = Loop(config, ledger, fleet, self.network, MemoryPlanner(self.clock, SOLVE_S))
        self.services, self.network.ledger = Services(loop), ledger
        self._life = asyncio.create_task(loop.run())

    async def kill(self, down_s: float) -> None:
        """All that the controller does ends where it is; another one begins after a while."""
        if self.services is None:
            return
        self.services = None
        self.kills += 1
        await _end(asyncio.all_tasks() - self._own)
        await self.clock.sleep(down_s)
        self.start()

    async def _follow(self) -> None:
        """To the end, or the first thing that is wrong."""
        while self.clock.monotonic() < LASTS_S and not self._is_wrong():
            await self.clock.sleep(PUSH_S)
        self.network.heal()
        self.disk.is_full = False
        self.agents.lots = dict.fromkeys(self.pools)
        await self._quiet()
        for pool in self.pools:
            self._bind(pool, RATE)
        await self.kill(0.0)
        await self._quiet()
        for pool in self.pools:
            if (last := self._last(pool)) is not None and last.phase is Phase.HALTED:
                await self.clock.sleep(4 * PUSH_S)  # until agents agree on what stands
                refused = await self.operators.back(pool, f"back {pool}")
                await self._quiet()
                now = self._last(pool)
                fine = now.key == f"back {pool}" and now.phase is Phase.SUCCEEDED
                told = f"{last.id} of {pool}: {refused or now.why}"
                self.watch.check(fine, "a rollback mends what is halted", told)

    def _last(self, pool: str) -> Any:
        found = self.disk.newest("operation", pool=pool, final=True)
        return next((one.value for one in found if one.value.phase is not Phase.REFUSED), None)

    async def _quiet(self) -> None:
        """Until nothing runs any more."""
        until_s = self.clock.monotonic() + ENDS_S
        await self.clock.sleep(EVERY_S + SOLVE_S)
        while (self.watch.open or self.watch.waiting) and not self._is_wrong():
            await self.clock.sleep(EVERY_S)
            for id in (*self.watch.open, *sorted(self.watch.waiting)):
                at = self.watch.open[id].progress if id in self.watch.open else "waiting"
                told = f"{id} is {at} since {ENDS_S:g} s, and all is well"
                self.watch.check(self.clock.monotonic() < until_s, "every operation ends", told)

    def _is_wrong(self) -> bool:
        if self.services is not None:
            told = self.services.loop.conditions.items()
            bugs = [f"{what}: {text}" for what, text in told if "(a bug" in text]
            self.watch.check(not bugs, "no bug is a condition", "; ".join(bugs))
            self.watch.check(not self._life.done(), "the loop goes on", repr(self._life))
        return self.watch.wrong is not None

    async def _at(self, event: Event) -> None:
        await self.clock.sleep(event.at_s)
        name = f"p{event.pool}"
        match event.what:
            case "kill":
                await self.kill(event.lasts_s)
            case "clock":
                self.clock.jump(event.jump_s)
            case "shift":
                self.agents.lots[name] = event.lot
            case "freeze" | "unfreeze":
                self._bind(name, 0 if event.what == "freeze" else RATE)
                await self.kill(1.0)
            case _ if event.is_fault:
                self._turn(event, name, True)
                await self.clock.sleep(event.lasts_s)
                self._turn(event, name, False)
            case _:
                await self.operators.do(event, self.pools[name])

    def _turn(self, event: Event, name: str, on: bool) -> None:
        """A fault that lasts, on and off."""
        pool, engine = self.pools[name], self.network.there[name, f"e{event.engine}"]
        those = [one for (of, _), one in self.network.there.items() if of == name]
        match event.what:
            case "partition":
                for one in those:
                    one.is_cut = on
            case "slow":
                for one in those:
                    one.slow_s = event.wait_s if on else 0.0
            case "deaf":
                engine.is_deaf = on
            case "engine lost" | "engine anew":
                engine.lose() if on else engine.back(event.what == "engine anew")
            case "silent":
                engine.is_silent = on
            case "pushes twice":
                (self.agents.doubled.add if on else self.agents.doubled.discard)(name)
            case "disk full":
                self.disk.is_full = on
            case "wrong map":
                stands = engine.memory.placement
                engine.says = a_map(event.lot, pool, stands.gpus, stands.slots) if on else None

    def _bind(self, pool: str, rate: int) -> None:
        """What the next controller is told of bytes a minute."""
        config = self.watch.config
        policies = {**config.pools, pool: replace(config.of(pool), bytes_per_minute=rate)}
        self.watch.config = replace(config, pools=policies)

    def _told(self) -> Told:
        written = sha256()
        for record in self.disk.history():
            blob = self.disk.blob(record.kind, record.id, record.version)
            told = record.kind, record.id, record.at_s, record.reason, record.text, blob
            written.update(repr(told).encode())
        for asked in self.watch.asked:
            written.update(asked.encode())
        watch, digest = self.watch, written.hexdigest()
        return Told(watch.wrong, len(watch.ended), len(watch.asked), self.kills, digest)


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    """In the order in which they began."""
    those = sorted(tasks, key=lambda one: (len(one.get_name()), one.get_name()))
    for task in those:
        task.cancel()
    await asyncio.gather(*those, return_exceptions=True)


def _policy(pool: TinyPool) -> PoolPolicy:
    return PoolPolicy(
        HARDWARE, mode=pool.mode, nodes=1, optimizer="eplb", window_s=180.0, least_tokens=1_000,
        confirmations=pool.confirmations, cooldown_s=60.0, max_moved=1.0, horizon_s=1e6,
        bytes_per_minute=RATE, rank_bytes=BYTES,
    )  # fmt: skip
