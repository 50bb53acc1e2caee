"""`placer scale` of a pool of vLLM's: an operation, from its price to its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controller.changes.arbiter import BusyError
from controller.changes.operations import Operation, Phase
from controller.changes.sizing import sized
from controller.engines.in_memory import MemoryPlanner
from controller.engines.vllm_api import Answer, UnreachableError
from controller.engines.vllm_elastic import VllmElastic
from controller.loop import Loop
from controller.migration.commands import Discard, Done
from tests.controller.engines.test_vllm_elastic import Elastic, group_of, living
from tests.controller.tiny_pool import POOL, a_config, in_virtual_time


class Pool:
    """One engine of two ranks, and the loop that looks after it."""

    def __init__(self, world: Elastic) -> None:
        self.world, clock = world, world.clock
        planner = MemoryPlanner(clock)
        self.loop = Loop(a_config(), world.ledger, world.fleet, world.elastic, planner)
        self.arbiter = self.loop.arbiter

    async def scale(self, ranks: int) -> None:
        change = await sized(self.arbiter, self.loop.planner, POOL, ranks)
        await self.arbiter.scale(POOL, change, "", "more users")

    async def ended(self) -> Operation:
        await self.arbiter.settle()
        return self.newest

    @property
    def newest(self) -> Operation:
        found: Operation = self.world.ledger.records.newest("operation")[0].value
        return found


@asynccontextmanager
async def pooled(ranks: int = 2) -> AsyncIterator[Pool]:
    async with living(ranks) as world:
        yield Pool(world)


@in_virtual_time
async def test_it_grows_step_by_step_and_serves_the_map_that_was_priced() -> None:
    async with pooled() as pool:
        await pool.scale(4)
        operation = await pool.ended()
        assert (operation.phase, operation.why) == (Phase.SUCCEEDED, "")
        steps = ["staging", "agreeing", "transferring", "switching", "releasing", "verifying"]
        assert list(operation.seconds) == steps
        assert operation.seconds["transferring"] >= 30.0
        assert 5.0 <= operation.longest_pause_s <= 6.0
        stands = await pool.world.elastic.stands(POOL, "e0")
        assert (stands.gpus, stands.digest) == (4, operation.goal)


@in_virtual_time
async def test_fewer_ranks_than_hold_all_experts_are_refused_before_anything_is_asked() -> None:
    """Slots of a rank are what they are: 4 experts need 2 ranks of 2."""
    async with pooled(4) as pool:
        await pool.scale(1)
        operation = pool.newest
        assert operation.phase is Phase.REFUSED
        assert "4 experts" in operation.why
        assert group_of(pool.world).posted == []


@in_virtual_time
async def test_a_pool_that_is_being_resized_names_the_operation() -> None:
    async with pooled() as pool:
        await pool.scale(4)
        await pool.world.clock.sleep(20.0)
        with pytest.raises(BusyError, match="op-1 is at work on chat"):
            await pool.scale(3)
        assert (await pool.ended()).phase is Phase.SUCCEEDED


@in_virtual_time
async def test_what_fails_before_the_commit_ends_where_it_began() -> None:
    async with pooled() as pool:
        group_of(pool.world).fails = "prepare"
        await pool.scale(4)
        operation = await pool.ended()
        assert operation.phase is Phase.ROLLED_BACK
        assert operation.why.startswith("e0: transferring: e0 stays as it is")
        assert group_of(pool.world).ranks == 2


@in_virtual_time
async def test_a_lost_group_halts_and_says_what_to_do() -> None:
    async with pooled() as pool:
        group_of(pool.world).fails = "commit"
        await pool.scale(4)
        operation = await pool.ended()
        assert operation.phase is Phase.HALTED
        assert "the group is lost; end all its ranks and start it again" in operation.why


@in_virtual_time
async def test_an_engine_that_answers_503_for_ever_halts_too() -> None:
    async with pooled() as pool:
        group_of(pool.world).fails = "never ends"
        await pool.scale(4)
        operation = await pool.ended()
        assert operation.phase is Phase.HALTED
        assert "503 for" in operation.why


@in_virtual_time
async def test_told_to_go_back_it_ends_what_vllm_began_and_resizes_again() -> None:
    async with pooled() as pool:
        await pool.scale(4)
        await pool.world.clock.sleep(20.0)
        await pool.arbiter.rollback(POOL, "", "too many")
        operation = await pool.ended()
        assert operation.phase is Phase.ROLLED_BACK
        assert {target for _, target in group_of(pool.world).posted} == {4, 2}
        assert group_of(pool.world).ranks == 2


@in_virtual_time
async def test_after_a_kill_a_new_controller_waits_for_vllm_and_goes_on() -> None:
    async with pooled() as pool:
        await pool.scale(4)
        await pool.world.clock.sleep(20.0)
        task = pool.arbiter._task
        assert task is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        world = pool.world
        for one in world.elastic._staged.values():
            one.change.end()
        world.elastic = VllmElastic(world.engines, world.capacity, group_of(world).ask)
        new = Pool(world)
        await new.arbiter.resume()
        operation = await new.ended()
        assert (operation.phase, group_of(world).ranks) == (Phase.SUCCEEDED, 4)


@in_virtual_time
async def test_a_rank_that_answers_nobody_is_not_waited_for_and_all_goes_back() -> None:
    """The first says that all has failed; the other never answers."""
    async with pooled() as pool:
        group, asked = group_of(pool.world), pool.world.elastic._ask

        async def one_is_mute(method: str, url: str, *rest: Any) -> Answer:
            if "r1" in url and "/scale" in url and group.fails:
                raise UnreachableError("mute")
            return await asked(method, url, *rest)

        pool.world.elastic._ask = one_is_mute
        group.fails = "prepare"
        group.waits_for_all = False
        await pool.scale(4)
        operation = await pool.ended()
        assert (operation.phase, group.ranks) == (Phase.ROLLED_BACK, 2)


@in_virtual_time
async def test_engines_without_elastic_ep_are_not_asked_whether_they_are_resized() -> None:
    async with pooled() as pool:
        pool.world.said["can_resize"] = False
        pool.world.say()
        group_of(pool.world).silent = 10**6
        assert await pool.world.ask(Discard(5)) == Done()
        assert group_of(pool.world).silent == 10**6
