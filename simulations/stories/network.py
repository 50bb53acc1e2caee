"""What lies between a controller and its engines: commands and answers that are late, lost or come
twice, and engines that die."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.changes.targets import targets_of
from controller.engines.in_memory import MemoryEngine, MemoryEngines
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import Command, Lost, Outcome, Stage
from controller.ports import EngineLostError
from placer.placement import Placement, linear
from placer.virtual_clock import VirtualClock
from simulations.stories.story import Event, TinyPool
from simulations.stories.watch import Watch

TAKES_S = {"Copy": 2.0, "Transfer": 5.0, "Switch": 1.0}  # and others:
QUICK_S = 0.2
READS_S = 0.01  # of a map
BYTES = 1000  # of an expert


@dataclass(eq=False)
class Engine:
    """One of the world's. ``first``: the map that it starts with; life: grows when it starts anew

    is_cut: no command reaches it; is_deaf: no answer comes from it; slow_s: that commands take
    more; says: a map that it has not
    """

    memory: MemoryEngine
    first: Placement
    life: int = 1
    is_cut: bool = False
    is_deaf: bool = False
    is_silent: bool = False
    slow_s: float = 0.0
    says: Placement | None = None
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    def lose(self) -> None:
        self.memory.is_gone = True

    def back(self, anew: bool) -> None:
        self.memory.is_gone = False
        if anew:
            self.memory = MemoryEngine(self.first, BYTES)
            self.life += 1


class Network(MemoryEngines):
    """The port of every controller of a story; what is on its way outlives them.

    beside: has something done, of which no controller knows
    kill:   the controller, for so many seconds
    """

    def __init__(
        self,
        pools: Mapping[str, TinyPool],
        events: Sequence[Event],
        clock: VirtualClock,
        watch: Watch,
        beside: Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"],
        kill: Callable[[float], Coroutine[Any, Any, None]],
    ) -> None:
        super().__init__({})
        self.clock, self.watch, self.beside, self.kill = clock, watch, beside, kill
        self.ledger: WatchedLedger | None = None  # of the controller that lives
        self.there: dict[tuple[str, str], Engine] = {}
        for name, pool in pools.items():
            for number in range(pool.engines):
                first = linear(pool.layers, pool.slots, pool.experts, pool.ranks)
                self.there[name, f"e{number}"] = Engine(MemoryEngine(first, BYTES), first)
        self._counts: Counter[str] = Counter()
        self._moods = [one for one in events if one.on]
        self.is_healed = False

    async def stands(self, pool: str, engine: str) -> Placement:
        await self.clock.sleep(READS_S)
        found = self.there[pool, engine]
        if found.memory.is_gone or found.is_cut or found.is_deaf:
            raise EngineLostError(f"{engine} of {pool} does not answer: start it again")
        return found.says or found.memory.placement

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        self.watch.issued(pool, engine, command, self._target(pool, command))
        answer = self.beside(self._deliver(self.there[pool, engine], pool, command))
        return await asyncio.shield(answer)

    def heal(self) -> None:
        """From now on nothing is lost."""
        self.is_healed, self._moods = True, []
        for one in self.there.values():
            one.is_cut = one.is_deaf = one.is_silent = False
            one.slow_s, one.says, one.memory.is_gone = 0.0, None, False

    async def _deliver(self, engine: Engine, pool: str, command: Command) -> Outcome:
        name = type(command).__name__
        self._counts[name] += 1
        moods = [one for one in self._moods if (one.on, one.nth) == (name, self._counts[name])]
        if engine.is_cut or not await self._arrives(engine, [o for o in moods if not o.is_after]):
            await asyncio.Event().wait()
        async with engine.one_at_a_time:
            await self.clock.sleep(TAKES_S.get(name, QUICK_S) + engine.slow_s)
            answer = self._carry_out(engine, pool, command)
            if any(one.what == "twice" for one in moods):
                answer = self._carry_out(engine, pool, command)
        for one in moods:
            if one.what == "rank dies" and one.is_after:
                answer = Lost("rank 1 is gone")
        if engine.is_deaf or not await self._arrives(engine, [o for o in moods if o.is_after]):
            await asyncio.Event().wait()
        return answer

    def _target(self, pool: str, command: Command) -> Placement | None:
        now = next((one for one in self.watch.open.values() if one.pool == pool), None)
        if not isinstance(command, Stage) or now is None or self.ledger is None:
            return None
        record = self.ledger.records.get("operation", now.id)
        assert record is not None
        targets = targets_of(self.ledger.records, record)
        return self.ledger.placement(record.value.target(targets))

    def _carry_out(self, engine: Engine, pool: str, command: Command) -> Outcome:
        before = engine.memory.placement
        answer = engine.memory.carry_out(command)
        if not isinstance(answer, Lost):
            self.watch.done(pool, engine.memory, before, command, answer)
        return answer

    async def _arrives(self, engine: Engine, moods: Sequence[Event]) -> bool:
        """It, or its answer, whatever comes over it."""
        return all([await self._come(one, engine) for one in moods])

    async def _come(self, mood: Event, engine: Engine) -> bool:
        """Over a command; whether that goes on."""
        if self.is_healed:
            return True
        match mood.what:
            case "kill":
                self.beside(self.kill(mood.lasts_s))
                await self.clock.sleep(0)
            case "lose it" | "lose the answer":
                return False
            case "delay":
                await self.clock.sleep(mood.lasts_s)
            case "rank dies":
                engine.lose()
                self.beside(self._bring_back(engine, mood.lasts_s))
        return True

    async def _bring_back(self, engine: Engine, after_s: float) -> None:
        await self.clock.sleep(after_s)
        engine.back(anew=False)
