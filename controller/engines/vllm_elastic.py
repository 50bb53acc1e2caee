"""Changes of width of vLLM's engines, by vLLM's own elastic expert parallelism.

| command | what is asked of vLLM |
|---|---|
| Stage | nothing: is it idle, and can it have that width? |
| Transfer | capacity for more ranks, then the target, posted to every old rank; until they commit |
| Switch | nothing: until it is completed |
| Release | nothing: capacity of fewer ranks is given back; until the new ranks register |
| Verify | nothing: the map is offered to the new ranks' agents |
| Discard | nothing: until it has ended, since vLLM cannot stop |
"""

from contextlib import suppress
from dataclasses import dataclass

from controller.engines.vllm_api import Ask, UnreachableError, VllmApi, ask, fault
from controller.engines.vllm_change import LOOK_EVERY_S, VllmChange
from controller.engines.vllm_engines import VllmEngines
from controller.fleet.pools import Member, width_of
from controller.fleet.workers import FleetError
from controller.migration.commands import (
    Command,
    Discard,
    Done,
    Lost,
    Outcome,
    Refused,
    Release,
    Stage,
    Switch,
    Transfer,
    Verify,
)
from controller.ports import Capacity, EngineLostError
from placer.placement import Placement

TAKEN_UP_S = 120.0  # an engine without traffic does not rebalance, and has its width all the same

Key = tuple[str, str]  # pool, engine


@dataclass(frozen=True, slots=True, eq=False)
class _Staged:
    epoch: int
    before: int  # ranks
    after: Placement
    change: VllmChange


class VllmElastic:
    """by_agent: for all but changes of width; capacity: whoever starts and ends ranks, None if that
    is for others to do"""

    def __init__(
        self, by_agent: VllmEngines, capacity: Capacity | None = None, ask: Ask = ask
    ) -> None:
        self.by_agent, self.fleet, self.capacity = by_agent, by_agent.fleet, capacity
        self._clock, self._ask = by_agent.ledger.clock, ask
        self._staged: dict[Key, _Staged] = {}

    def moves_itself(self, pool: str, engine: str) -> bool:
        return self.by_agent.moves_itself(pool, engine)

    async def stands(self, pool: str, engine: str) -> Placement:
        return await self.by_agent.stands(pool, engine)

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        try:
            return await self._carry_out((pool, engine), command)
        except (EngineLostError, FleetError, UnreachableError) as error:
            return Lost(str(error))

    async def _carry_out(self, key: Key, command: Command) -> Outcome:
        staged = self._staged.get(key)
        match command:
            case Stage(before=before, after=after) if before.gpus != after.gpus:
                return await self._stage(key, command)
            case Discard():
                return await self._discard(key, command)
            case Verify() if staged is not None and staged.epoch == command.epoch:
                return await self._verify(key, staged, command)
            case Transfer() | Switch() | Release():
                if staged is None or staged.epoch != command.epoch:
                    return Refused(f"epoch {command.epoch} is not staged: stage it first")
                return await self._resize(key, staged, command)
        return await self.by_agent.carry_out(*key, command)

    async def _stage(self, key: Key, command: Stage) -> Outcome:
        now, after = await self.stands(*key), command.after
        if now.digest != command.before.digest:
            return Refused(f"it serves {now.digest}: plan from that map")
        members = self.by_agent.members(*key)
        if why := _unfit(members, now, after) or _unreachable(members):
            return Refused(why)
        change = self._change(key, members, after.gpus)
        outcome = await change.check()
        if isinstance(outcome, Done):
            self.by_agent.ledger.keep_placement(after)
            if key in self._staged:
                self._staged[key].change.end()
            self._staged[key] = _Staged(command.epoch, now.gpus, after, change)
        return outcome

    async def _resize(
        self, key: Key, staged: _Staged, command: Transfer | Switch | Release
    ) -> Outcome:
        match command:
            case Transfer():
                if staged.after.gpus > staged.before:
                    await self._ask_for_ranks(key, staged.after.gpus)
                staged.change.begin()
                return await staged.change.prepared()
            case Switch():
                return await staged.change.completed()
            case Release():
                staged.change.end()
                if staged.after.gpus < staged.before:
                    await self._release_ranks(key, staged.after.gpus)
                while self._ranks(key) != staged.after.gpus:
                    await self._clock.sleep(LOOK_EVERY_S)
        return Done()

    async def _verify(self, key: Key, staged: _Staged, command: Verify) -> Outcome:
        """While it changed its width vLLM chose the map itself."""
        now = await self.stands(*key)
        offered = await self.by_agent.carry_out(*key, Stage(command.epoch, now, staged.after))
        if not isinstance(offered, Done):
            return offered
        outcome: Outcome = Done()
        with suppress(TimeoutError):
            async with self._clock.timeout(TAKEN_UP_S):
                outcome = await self.by_agent.carry_out(*key, command)
        if isinstance(outcome, Done):
            del self._staged[key]
        return outcome

    async def _discard(self, key: Key, command: Discard) -> Outcome:
        await self.by_agent.carry_out(*key, command)
        staged = self._staged.get(key)
        if staged is not None:
            change = staged.change
        else:  # of a controller that was killed, perhaps
            members = self.fleet.engine(*key)
            if not _can_resize(members) or _unreachable(members):
                return Done()
            change = self._change(key, members, 0)
        outcome = await change.over()
        if isinstance(outcome, Done) and staged is not None:
            if not change.is_done and staged.after.gpus > staged.before:
                await self._release_ranks(key, staged.before)
            del self._staged[key]
        return outcome

    def _change(self, key: Key, members: list[Member], ranks: int) -> VllmChange:
        """ranks: that there will be; 0 if that is not known, and the first rank's server has to
        tell for all."""
        addresses = list(dict.fromkeys(one.registration.api for one in members))
        apis = [VllmApi(one, self._clock, self._ask) for one in addresses]
        target = ranks // _tp_size(members)
        return VllmChange(key[1], apis, min(len(apis), target or 1), target, self._clock)

    def _ranks(self, key: Key) -> int:
        """0 while they do not agree, or are not all heard."""
        try:
            return self.by_agent.members(*key)[0].registration.worker.ep_size
        except EngineLostError:
            return 0

    async def _ask_for_ranks(self, key: Key, ranks: int) -> None:
        if self.capacity is not None:
            gpus = self._gpus(key, ranks)
            await self.capacity.ask(key[0], gpus)
            while (await self.capacity.ready(key[0])).available < gpus:
                await self._clock.sleep(LOOK_EVERY_S)

    async def _release_ranks(self, key: Key, ranks: int) -> None:
        if self.capacity is not None:
            await self.capacity.release(key[0], self._gpus(key, ranks))

    def _gpus(self, key: Key, ranks: int) -> int:
        """Of the pool, if this engine has so many."""
        engines = self.fleet.pool(key[0]).engines
        widths = [width_of(members) for name, members in engines.items() if name != key[1]]
        return ranks + sum(width.ranks for width in widths if width is not None)


def _tp_size(members: list[Member]) -> int:
    return members[0].registration.worker.tp_size or 1


def _can_resize(members: list[Member]) -> bool:
    return all(one.registration.worker.can_resize for one in members)


def _unfit(members: list[Member], now: Placement, after: Placement) -> str:
    """Why these ranks cannot become so many; empty if they can."""
    worker, tp_size = members[0].registration.worker, _tp_size(members)
    if not _can_resize(members):
        return "it cannot change its width: start it with --enable-elastic-ep, and PLACER_API set"
    if after.slots * now.gpus != now.slots * after.gpus:
        return f"{now.slots // now.gpus} slots a rank are what it has at any width"
    if after.gpus % tp_size:
        return f"{after.gpus} ranks are no multiple of the {tp_size} of a tensor-parallel group"
    if worker.most_ranks and after.gpus > worker.most_ranks:
        return f"{worker.most_ranks} ranks are the most: --elastic-ep-max-dp-size says so"
    return ""


def _unreachable(members: list[Member]) -> str:
    """Why it is not known where to ask; empty if it is."""
    for one in members:
        if why := fault(one.registration.api):
            return f"{one.registration.id.worker}: {why}"
    servers = len({one.registration.api for one in members})
    groups = len(members) // _tp_size(members)
    if servers not in (1, groups):
        return (
            f"{servers} API servers of {groups} data-parallel ranks: set PLACER_API to the one of "
            "all, or on each rank to its own"
        )
    return ""
