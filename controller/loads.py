"""How loaded pools are, as policies for their size see it, and where what these want is begun."""

import asyncio
from collections import deque
from dataclasses import replace

from controller.changes.arbiter import Arbiter
from controller.changes.operations import Operation, Phase
from controller.changes.sizing import asked, sized, widths
from controller.config import Config
from controller.fleet.pools import Group, Pool, width_of
from controller.fleet.signals import Signals, SignalWindow
from controller.fleet.workers import FORGOTTEN_S, Fleet, FleetError
from controller.ledger.ledger import Record
from controller.policies.policy import Decision, Scaling, Size
from controller.ports import Capacity, EngineLostError, Metrics, Planner
from controller.samples import Sample
from controller.size_settings import Autoscale
from placer.clock import Clock

DEADLINE_S = 3.0  # of what an engine says of its load
RESIZE_S = 4.0  # that a change of width takes, as long as none was seen
LATELY = 20  # operations that are looked through for changes of size


class Loads:
    """The loads of pools whose size follows them. metrics, capacity: None if nobody keeps them"""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        arbiter: Arbiter,
        planner: Planner,
        metrics: Metrics | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        self.config, self.fleet, self.arbiter, self.planner = config, fleet, arbiter, planner
        self.metrics, self.capacity = metrics, capacity
        self._windows: dict[str, SignalWindow] = {}
        self._wishes: dict[str, deque[tuple[float, int]]] = {}  # when, and how many GPUs
        self._widths: dict[str, tuple[object, tuple[int, ...]]] = {}  # that can be, and of what

    @property
    def clock(self) -> Clock:
        return self.fleet.clock

    @property
    def every_s(self) -> float | None:
        """Of the pool that is looked at most often; None if none is."""
        found = [self.config.of(pool).autoscale for pool in self.fleet.pools]
        return min((one.every_s for one in found if one is not None), default=None)

    def forget(self) -> None:
        """Pools that are gone."""
        for known in (self._windows, self._wishes, self._widths):
            for pool in known.keys() - self.fleet.pools.keys():
                known.pop(pool)

    def signals(self, pool: str) -> Signals | None:
        """As far as they were read."""
        window = self._windows.get(pool)
        return window.signals if window is not None else None

    async def read(self, pool: Pool) -> None:
        """What all engines say, side by side. Raises EngineLostError if none says anything."""
        settings, group = self.config.of(pool.name).autoscale, pool.group()
        if settings is None or self.metrics is None or group is None:
            return
        back_s = max(settings.window_s, settings.ttft_s) + settings.ttft_s
        window = self._windows.setdefault(pool.name, SignalWindow(back_s, settings.tpot_s))
        window.window_s, window.tpot_s = back_s, settings.tpot_s
        window.forget(group.engines)
        answers = await asyncio.gather(*(self._sample(pool.name, one) for one in group.engines))
        found = {
            engine: one
            for engine, one in zip(group.engines, answers, strict=True)
            if isinstance(one, Sample)
        }
        if not found:
            raise next(one for one in answers if isinstance(one, EngineLostError))
        ranks = group.ranks * len(group.engines)
        window.add(self.clock.monotonic(), ranks, found)

    def scaling(self, group: Group, balance: float) -> Scaling | None:
        """None if it is off, nothing was read, or engines differ in width, as while they change."""
        settings = self.config.of(group.pool).autoscale
        window = self._windows.get(group.pool)
        pool = self.fleet.pools.get(group.pool)
        if settings is None or window is None or pool is None or len(pool.groups) != 1:
            return None
        if (signals := window.signals) is None:
            return None
        now_s = self.clock.monotonic()
        wishes = self._wishes.setdefault(group.pool, deque())
        while wishes and wishes[0][0] < now_s - settings.stabilisation_s:
            wishes.popleft()
        rested_s, resize_s, failures = self._last_changes(group.pool)
        return Scaling(
            signals,
            Size(group.ranks, len(group.engines), group.slots),
            window.full_rate,
            balance,
            group.live,
            resize_s,
            rested_s,
            failures,
            tuple((now_s - at_s, gpus) for at_s, gpus in wishes),
            self._possible(group, settings),
        )

    def _possible(self, group: Group, settings: Autoscale) -> tuple[int, ...]:
        """Widths, looked for again only when the pool or its settings are others."""
        settled = group.model, group.ranks, group.slots, tuple(group.engines)
        key = settled, self.config.of(group.pool)
        if (known := self._widths.get(group.pool)) is None or known[0] != key:
            known = key, widths(self.arbiter, group, settings.widths)
            self._widths[group.pool] = known
        return known[1]

    async def take(self, group: Group, decision: Decision) -> Decision:
        """Remember what is wished for, and begin what was decided, or say who could."""
        pool, size = group.pool, decision.size
        if decision.wish:
            self._wishes.setdefault(pool, deque()).append((self.clock.monotonic(), decision.wish))
        if size is None:
            return decision
        if (size.engines, size.slots) != (len(group.engines), group.slots):
            what = "engines" if size.engines != len(group.engines) else "slots"
            why = f"{what} are started by whoever runs the pool"
            return replace(decision, outcome="propose", reason=f"{decision.reason}: {why}")
        if decision.outcome == "propose":
            remedy = f"placer scale {pool} --ranks {size.ranks}"
            return replace(decision, reason=f"{decision.reason}: {remedy}")
        if (running := self.arbiter.running) is not None:
            why = f"{running.id} is at work on {running.pool}"
            return replace(decision, outcome="wait", reason=f"{decision.reason}: {why}")
        if why := await self._lacking(pool, size.gpus):
            return replace(decision, outcome="wait", reason=f"{decision.reason}: {why}")
        try:
            change = await sized(self.arbiter, self.planner, pool, size.ranks)
            record = await self.arbiter.scale(pool, change, "", decision.reason)
        except FleetError as error:  # something else began, or ended, while it was planned
            return replace(decision, outcome="wait", reason=f"{decision.reason}: {error}")
        return replace(decision, reason=f"{record.id}: {decision.reason}")

    async def scale(
        self, pool: str, ranks: int, key: str, reason: str, wait: bool
    ) -> Record[Operation]:
        """Another width, as somebody asks for it. wait: for its turn and its GPUs, else it is
        refused until then. Who wants the width of now takes back what waits."""
        waiting, queue = self.arbiter.queue.of(pool), self.arbiter.queue
        group = self.fleet.pool(pool).group() if waiting is not None else None
        if waiting is not None and group is not None and group.ranks == ranks:
            return queue.withdraw(waiting, f"{ranks} ranks are wanted again", key)
        if wait:
            _, planned, never = asked(self.arbiter, pool, ranks)
            if never:
                return await self.arbiter.scale(pool, (planned, None, never), key, reason)
            return queue.put(pool, planned, key, reason)
        change = await sized(self.arbiter, self.planner, pool, ranks)
        if not change[2]:
            await self._refuse_lacking(pool, ranks)
        record = await self.arbiter.scale(pool, change, key, reason)
        if waiting is not None and not record.final:
            queue.withdraw(waiting, f"{record.id} takes its place")
        return record

    async def begin(self, waiting: Record[Operation]) -> None:
        """What waited for its turn, if its GPUs are there."""
        pool, scale = waiting.pool, waiting.value.scale
        assert scale is not None  # nothing else waits here
        ranks = scale.ranks
        if pool not in self.fleet.pools and self.arbiter.ledger.age_s(waiting) > FORGOTTEN_S:
            self.arbiter.queue.withdraw(waiting, f"{pool} is gone")
            return
        if (group := self.fleet.pool(pool).group()) is None:
            return
        if group.ranks == ranks:
            self.arbiter.queue.withdraw(waiting, f"engines of {pool} have {ranks} ranks already")
        elif not await self._lacking(pool, ranks * len(group.engines)):
            planned = await sized(self.arbiter, self.planner, pool, ranks)
            await self.arbiter.scale(pool, planned, "", waiting.reason, waiting)

    async def settle(self) -> None:
        """Of changes that are over nothing stays asked for, where nobody else says the size."""
        running = self.arbiter.running
        for name, pool in list(self.fleet.pools.items()):
            is_changing = running is not None and running.pool == name
            if self.capacity is None or is_changing or self.config.of(name).autoscale is not None:
                continue
            if not (asked := self.capacity.asked(name)):
                continue
            engines = pool.engines.values()
            widths = [width.ranks for width in map(width_of, engines) if width is not None]
            if self.arbiter.queue.of(name) is not None or len(widths) < len(engines):
                continue
            if asked > sum(widths):
                await self.capacity.release(name, sum(widths))

    async def _refuse_lacking(self, pool: str, ranks: int) -> None:
        """Raises FleetError if GPUs are not there for which nobody waits."""
        group = self.fleet.pool(pool).group()
        if self.capacity is None or group is None:
            return
        before = (await self.capacity.ready(pool)).desired
        if why := await self._lacking(pool, ranks * len(group.engines)):
            await self.capacity.release(pool, before)
            raise FleetError(f"{why}: report pods that are ready, or say that it may wait")

    async def _lacking(self, pool: str, gpus: int) -> str:
        """GPUs that are asked for now, and not there yet; empty if they are."""
        if self.capacity is None:
            return ""
        await self.capacity.ask(pool, gpus)
        available = (await self.capacity.ready(pool)).available
        return f"{gpus} GPUs are asked for, {available} available" if available < gpus else ""

    async def release(self, group: Group, decision: Decision) -> None:
        """GPUs beyond those that engines have, if nothing is to change and none was wished for
        lately: some may be on their way."""
        gpus = group.ranks * len(group.engines)
        waits = self.arbiter.queue.of(group.pool) is not None
        if self.capacity is None or decision.outcome != "hold" or waits:
            return
        if any(wish > gpus for _, wish in self._wishes.get(group.pool, ())):
            return
        if (await self.capacity.ready(group.pool)).desired > gpus:
            await self.capacity.release(group.pool, gpus)

    async def _sample(self, pool: str, engine: str) -> Sample | EngineLostError:
        assert self.metrics is not None
        try:
            async with self.clock.timeout(DEADLINE_S):
                return await self.metrics.sample(pool, engine)
        except EngineLostError as error:
            return error
        except TimeoutError:
            return EngineLostError(f"{engine} of {pool} does not say its load in {DEADLINE_S:g} s")

    def _last_changes(self, pool: str) -> tuple[float | None, float, int]:
        """Seconds since the last change of size, seconds that the last good one took, and how many
        in a row were refused or failed."""
        ledger, failures = self.arbiter.ledger, 0
        rested_s, resize_s = None, RESIZE_S
        for record in ledger.records.newest("operation", LATELY, pool, final=True):
            if record.value.scale is None:
                continue
            if rested_s is None:
                rested_s = ledger.age_s(record)
            if record.value.phase is Phase.SUCCEEDED:
                resize_s = sum(record.value.seconds.values())
                break
            failures += 1
        return rested_s, resize_s, failures
