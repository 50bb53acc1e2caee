"""A pool of two engines, each 2 layers x 4 experts on 2 ranks, and what may happen to them."""

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np

from controller.config import Config, PoolPolicy
from controller.engines.in_memory import MemoryEngine, MemoryEngines, MemoryPlanner
from controller.fleet.pools import Group, Pool, Registration, WorkerId
from controller.fleet.windows import Delta
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger, LedgerFull, Record
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.migration.commands import Command, Lost, Outcome, Refused
from controller.ports import Capacity
from placer.cost.balance import rank_load
from placer.placement import Placement
from placer.plan import Plan
from placer.virtual_clock import VirtualClock, VirtualLoop
from placer.worker import Worker
from tests.builders import a_model, a_placement, by_hand

POOL = "chat"
BEGIN_S = 1_000.0
BYTES = a_model().expert_bytes
HOME = a_placement([[0, 1, 2, 3], [0, 1, 2, 3]])
GOAL = a_placement([[0, 2, 1, 3], [3, 1, 2, 0]])  # a swap in each layer: 2 copies a round
SKEWED = [[400, 400, 100, 100]] * 2  # at home 800 tokens on a rank and 200 on the other
TICK_S = 30.0
OTHER = a_placement([[0, 3, 2, 1], [0, 3, 2, 1]])

GENEROUS_S = 120.0  # what has not happened by then never will
P = ParamSpec("P")


def asynchronous(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in an event loop of its own, which does not wait for ever."""

    async def patient(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(GENEROUS_S):
            await test(*args, **kwargs)

    @wraps(test)
    def plain(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(patient(*args, **kwargs))

    return plain


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A test in which time passes when everybody waits for it."""

    async def patient(*args: P.args, **kwargs: P.kwargs) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        watchdog = threading.Timer(GENEROUS_S, loop.call_soon_threadsafe, [task.cancel])
        watchdog.start()
        try:
            await test(*args, **kwargs)
        finally:
            watchdog.cancel()

    @wraps(test)
    def plain(*args: P.args, **kwargs: P.kwargs) -> None:
        VirtualClock().run(patient(*args, **kwargs))

    return plain


def a_clock(now: float) -> VirtualClock:
    """That of the loop that runs, if there is one; its wall clock says ``now``."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return VirtualClock(now)
    assert isinstance(loop, VirtualLoop), "use in_virtual_time"
    loop.clock.jump(now - loop.clock.now())
    return loop.clock


def at(fleet: Fleet, second: float) -> Fleet:
    """When its monotonic clock says so."""
    clock = fleet.clock
    assert isinstance(clock, VirtualClock)
    clock.advance(second - clock.monotonic())
    return fleet


def a_policy(**changes: Any) -> PoolPolicy:
    """Experts take a microsecond a token, links no time; one copy to a rank at a time."""
    told: dict[str, Any] = {
        "optimizer": "eplb", "least_tokens": 1_000, "max_moved": 1.0, "rank_bytes": BYTES,
        **changes,
    }  # fmt: skip
    return PoolPolicy(by_hand(), **told)


def a_config(**changes: Any) -> Config:
    return Config(a_policy(**changes))


def a_registration(
    engine: str = "e0",
    worker: str = "w0",
    pool: str = POOL,
    incarnation: int = 1,
    rank: int = 0,
    **more: Any,
) -> Registration:
    """``more`` goes to the worker if that has it, else to the registration."""
    model, said = a_model(), Worker.__slots__
    told: dict[str, Any] = {
        "name": worker, "model": "tiny", "layers": model.layers, "experts": model.experts,
        "top_k": model.top_k, "slots": 4, "ep_rank": rank, "ep_size": 2, "can_apply": True,
        "records": True,
    }  # fmt: skip
    told |= {key: more.pop(key) for key in list(more) if key in said}
    more.setdefault("shape", None if told["layers"] != model.layers else model)
    return Registration(WorkerId(pool, engine, worker, incarnation), Worker(**told), **more)


def a_delta(
    rows: Sequence[Sequence[int]], phase: str = "decode", tokens: int | None = None, **more: Any
) -> Delta:
    """Of a top-1 model; ``rows`` are its loads."""
    load = np.array(rows, dtype=np.uint32)
    return Delta(phase, 1, int(load[0].sum()) if tokens is None else tokens, 1, load, **more)


def only(pool: Pool) -> Group:
    """The engines of a pool whose engines have one width."""
    (group,) = pool.groups.values()
    return group


class Disk(Ledger):
    """There may be no room on it."""

    is_full = False
    is_full_for = ""  # records of this kind

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, FORMS)

    def put_all(self, records: Iterable[Record[Any]]) -> tuple[Record[Any], ...]:
        records = list(records)
        self._look(*(record.kind for record in records))
        return super().put_all(records)

    def prune(self, kind: str, keep: int, since_s: float, needed: Collection[str] = ()) -> int:
        self._look(kind)
        return super().prune(kind, keep, since_s, needed)

    def _look(self, *kinds: str) -> None:
        if self.is_full or self.is_full_for in kinds:
            raise LedgerFull("the disk is full: free some space; writing then goes on by itself")


class KilledError(Exception):
    """The controller's process is no more."""


class Moody(MemoryEngines):
    """Engines that answer the n-th command, from 0, as ``moods`` say. A mood is ``refused``,
    ``lost``, ``silent`` or ``killed``; with ``done``, it comes over them after the deed.

    asked: engine and command of each; before, after: called with its number
    """

    def __init__(
        self, engines: Mapping[str, MemoryEngine], moods: Mapping[int, str] | None = None
    ) -> None:
        super().__init__({(POOL, name): engine for name, engine in engines.items()})
        self.moods = dict(moods or {})
        self.asked: list[tuple[str, Command]] = []
        self.before: Callable[[int], None] = lambda number: None
        self.after: Callable[[int], None] = lambda number: None

    @property
    def names(self) -> list[str]:
        return [f"{engine} {type(command).__name__}" for engine, command in self.asked]

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        number = len(self.asked)
        self.asked.append((engine, command))
        self.before(number)
        mood = self.moods.get(number, "")
        answer: Outcome = Lost("nothing was done")
        if not mood or "done" in mood:
            answer = await super().carry_out(pool, engine, command)
        for one in self.engines.values():
            assert (one.placement.replicas > 0).all(), f"an expert is nowhere after {self.names}"
        self.after(number)
        if "killed" in mood:
            raise KilledError
        if "silent" in mood:
            await asyncio.Event().wait()
        if "refused" in mood:
            return Refused("not today")
        return Lost("rank 1 is gone") if "lost" in mood else answer


class World:
    """A controller with engines ``e0``, ``e1``, ... that stand at ``homes``; in memory, unless its
    ledger has a ``path``. capacity: where its GPUs come from"""

    capacity: Capacity | None

    def __init__(
        self,
        homes: Sequence[Placement] = (HOME, HOME),
        path: Path | None = None,
        begin_s: float = BEGIN_S,
        **policy: Any,
    ) -> None:
        self.clock, self.disk = a_clock(begin_s), Disk(path)
        self.homes = {f"e{number}": MemoryEngine(home, BYTES) for number, home in enumerate(homes)}
        self.engines = Moody(self.homes)
        self.config, self.capacity = a_config(**policy), None
        self.start()

    def start(self) -> None:
        """A controller that knows nothing but what was written down, and hears all engines."""
        self.ledger = WatchedLedger(self.disk, self.clock)
        self.fleet = Fleet(lambda pool: self.config.of(pool).window_s, self.clock)
        planner = MemoryPlanner(self.clock)
        ports = self.engines, planner, self.engines, self.capacity
        self.loop = Loop(self.config, self.ledger, self.fleet, *ports)
        self.arbiter = self.loop.arbiter
        self.hear()

    def hear(self) -> None:
        for engine in self.homes:
            self.fleet.register(a_registration(engine, actor="there"))

    def count(self, rows: Sequence[Sequence[int]], engine: str = "e0") -> None:
        """Traffic, which was pushed now."""
        self.hear()
        member = self.fleet.engine(POOL, engine)[0]
        self.fleet.push(member.registration.id, member.sequence + 1, [a_delta(rows)])

    async def tick(self, after_s: float = 0.0) -> None:
        """One turn of the loop, and what it begins."""
        await self.clock.sleep(after_s)
        self.hear()
        await self.loop.tick()
        await self.arbiter.settle()

    async def apply(self, placement: Placement, key: str = "") -> Record[Any]:
        """Proposed, approved, begun."""
        plan = self.arbiter.propose(POOL, Plan(placement), "", "an operator's plan")
        plan = self.arbiter.plans.approve(plan.id, plan.version, "go")
        return await self.arbiter.begin(plan, key, "go")

    def states(self) -> dict[str, str]:
        """Of all plans."""
        records = self.disk.newest("plan")
        return {record.id: record.value.state for record in sorted(records, key=lambda r: r.id)}

    def stand_at(self, placement: Placement) -> bool:
        """Whether all engines do; where on a rank an expert stands is of no consequence."""
        return all(alike(engine.placement, placement) for engine in self.homes.values())


def alike(one: Placement, other: Placement) -> bool:
    return np.array_equal(one.copies, other.copies)


def decided(world: World) -> tuple[str, str]:
    """Outcome and reason of the pool's newest decision."""
    decision = world.loop.views[POOL, 2].decision
    return decision.outcome, decision.reason


def is_even(world: World) -> bool:
    """Whether each rank of each engine has half of the skewed traffic."""
    maps = [engine.placement for engine in world.homes.values()]
    return all(rank_load(np.array(SKEWED), one).tolist() == [[500, 500]] * 2 for one in maps)
