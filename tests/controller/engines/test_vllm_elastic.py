"""Widths of vLLM's engines: two ranks of two slots become four, or the other way round."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from controller.engines.memory_capacity import MemoryCapacity
from controller.engines.vllm_change import COMMIT_S
from controller.engines.vllm_elastic import VllmElastic
from controller.migration.commands import (
    Agree,
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
from placer.placement import Placement
from placer.worker import GONE_S
from tests.builders import a_placement
from tests.controller.engines.fake_vllm import CONTRACT, Group, rows
from tests.controller.engines.servings import ENGINE, ByAgents
from tests.controller.tiny_pool import POOL, a_registration, in_virtual_time

FOUR = a_placement([[3, 1, 2, 0, 0, 1, 2, 3]] * 2, gpus=4)
TWO = a_placement([[0, 2, 1, 3]] * 2)
SLOTS = 2  # a rank


class Elastic(ByAgents):
    """Agents on all ranks of a group register what they are, every few seconds, and take up what
    they are offered."""

    def __init__(self, ranks: int = 2, minor: int = 33, external: bool = True) -> None:
        self.said: dict[str, Any] = {"can_resize": True, "tp_size": 1}
        self.group: Group | None = None
        super().__init__()
        self.group = Group(self.clock, ranks, minor, external)
        self.group.at_end = lambda ranks: self.say()
        self.capacity = MemoryCapacity(self.clock, limit=8, comes_s=10.0)
        self.elastic = VllmElastic(self.engines, self.capacity, self.group.ask)
        self.say()

    def say(self, *ranks: int, **said: Any) -> None:
        if self.group is None:
            return
        width = self.group.ranks
        for rank in ranks or range(width):
            api = self.group.addresses[rank]
            told = {**self.said, "api": api, "ep_size": width, "slots": SLOTS * width, **said}
            self.fleet.register(a_registration("e0", f"w{rank}", rank=rank, **told))

    async def live(self) -> None:
        watching = asyncio.create_task(super().live())
        try:
            while True:
                await self.clock.sleep(5.0)
                kept = {
                    name: member.registration.digest
                    for (_, name), member in self.fleet.pools[POOL].members.items()
                }
                for rank in range(self.group.ranks if self.group else 0):
                    self.say(rank, digest=kept.get(f"w{rank}", ""))
        finally:
            watching.cancel()

    async def ask(self, command: Command) -> Outcome:
        return await self.elastic.carry_out(*ENGINE, command)

    async def stage(self, after: Placement, epoch: int = 5) -> Outcome:
        return await self.ask(Stage(epoch, await self.elastic.stands(*ENGINE), after))

    async def walk(self, after: Placement, epoch: int = 5) -> list[Outcome]:
        """All that is asked of an engine, until something else than done is answered."""
        outcomes = [await self.stage(after, epoch)]
        commands = Agree(epoch), Transfer(epoch), Switch(epoch), Release(epoch)
        for command in (*commands, Verify(epoch, after.digest)):
            if isinstance(outcomes[-1], Done):
                outcomes.append(await self.ask(command))
        return outcomes


@asynccontextmanager
async def living(*args: Any, **more: Any) -> AsyncIterator[Elastic]:
    world = Elastic(*args, **more)
    life = asyncio.create_task(world.live())
    await asyncio.sleep(0)
    yield world
    life.cancel()
    with suppress(asyncio.CancelledError):
        await life


every = pytest.mark.parametrize(("minor", "external"), [(32, False), (33, False), (33, True)])


def group_of(world: Elastic) -> Group:
    assert world.group is not None
    return world.group


@every
@in_virtual_time
async def test_it_grows_and_then_serves_the_map_of_the_plan(minor: int, external: bool) -> None:
    async with living(minor=minor, external=external) as world:
        outcomes = await world.walk(FOUR)
        assert all(isinstance(one, Done) for one in outcomes), outcomes
        assert (await world.elastic.stands(*ENGINE)).digest == FOUR.digest
        servers = [0, 1] if external else [0]
        assert sorted(group_of(world).posted) == [(rank, 4) for rank in servers]
        stock = await world.capacity.ready(POOL)
        assert (stock.desired, stock.available) == (4, 4)


@every
@in_virtual_time
async def test_the_pause_is_the_time_of_the_commit(minor: int, external: bool) -> None:
    async with living(minor=minor, external=external) as world:
        *_, switched, _, _ = await world.walk(FOUR)
        assert isinstance(switched, Done)
        assert 5.0 <= switched.pause_s <= 6.0


@every
@in_virtual_time
async def test_it_shrinks_and_ranks_are_given_back_once_it_is_completed(
    minor: int, external: bool
) -> None:
    async with living(ranks=4, minor=minor, external=external) as world:
        await world.capacity.ask(POOL, 4)
        group = group_of(world)
        for command in (Agree(5), Transfer(5), Switch(5)):
            if isinstance(command, Agree):
                assert await world.stage(TWO) == Done()
            assert isinstance(await world.ask(command), Done)
            assert (await world.capacity.ready(POOL)).desired == 4
        assert group.ranks == 2
        assert isinstance(await world.ask(Release(5)), Done)
        assert (await world.capacity.ready(POOL)).desired == 2
        assert await world.ask(Verify(5, TWO.digest)) == Done()
        assert (await world.elastic.stands(*ENGINE)).digest == TWO.digest


@in_virtual_time
async def test_it_serves_while_new_ranks_are_prepared_and_commits_in_the_switch() -> None:
    async with living() as world:
        await world.stage(FOUR)
        assert await world.ask(Transfer(5)) == Done()
        assert (group_of(world).phase, group_of(world).ranks) == ("committing", 2)
        assert isinstance(await world.ask(Switch(5)), Done)
        assert (group_of(world).phase, group_of(world).ranks) == ("completed", 4)


@in_virtual_time
async def test_a_target_that_the_group_already_has_is_done() -> None:
    """As after a change whose end a controller did not live to see."""
    async with living() as world:
        await world.stage(FOUR)
        group_of(world).ranks = 4
        assert await world.ask(Transfer(5)) == Done()
        assert isinstance(await world.ask(Switch(5)), Done)
        assert group_of(world).epoch == ""


@every
@in_virtual_time
async def test_a_lost_answer_is_asked_for_again(minor: int, external: bool) -> None:
    async with living(minor=minor, external=external) as world:
        await world.stage(FOUR)
        group_of(world).silent = 6
        assert isinstance(await world.ask(Transfer(5)), Done)
        assert isinstance(await world.ask(Switch(5)), Done)
        assert group_of(world).ranks == 4


@every
@in_virtual_time
async def test_what_fails_before_the_commit_changes_nothing(minor: int, external: bool) -> None:
    async with living(minor=minor, external=external) as world:
        group = group_of(world)
        group.fails = "prepare"
        await world.stage(FOUR)
        refused = await world.ask(Transfer(5))
        assert isinstance(refused, Refused)
        assert refused.reason.startswith("e0 stays as it is: ")
        assert await world.ask(Discard(5)) == Done()
        assert (await world.capacity.ready(POOL)).desired == 2
        group.fails = ""
        assert all(isinstance(one, Done) for one in await world.walk(FOUR, epoch=6))


@every
@in_virtual_time
async def test_a_commit_that_fails_loses_the_group(minor: int, external: bool) -> None:
    async with living(minor=minor, external=external) as world:
        group_of(world).fails = "commit"
        await world.stage(FOUR)
        assert isinstance(await world.ask(Transfer(5)), Done)
        lost = await world.ask(Switch(5))
        assert isinstance(lost, Lost)
        assert "the group is lost; end all its ranks and start it again" in lost.reason
        assert isinstance(await world.ask(Discard(5)), Lost)


@every
@in_virtual_time
async def test_503_for_ever_is_a_lost_group_after_a_while(minor: int, external: bool) -> None:
    async with living(minor=minor, external=external) as world:
        group_of(world).fails = "never ends"
        await world.stage(FOUR)
        await world.ask(Transfer(5))
        begun_s = world.clock.monotonic()
        lost = await world.ask(Switch(5))
        assert isinstance(lost, Lost)
        assert f"(503 for {COMMIT_S:.0f} s)" in lost.reason
        assert COMMIT_S <= world.clock.monotonic() - begun_s < COMMIT_S + 10


@in_virtual_time
async def test_a_server_that_is_gone_is_lost() -> None:
    async with living() as world:
        await world.stage(FOUR)
        group_of(world).silent = 10**6
        lost = await world.ask(Transfer(5))
        assert lost == Lost("http://r0:8000/is_scaling_elastic_ep does not answer")


@in_virtual_time
async def test_a_group_that_somebody_else_resizes_is_named_with_that_operation() -> None:
    async with living() as world:
        group = group_of(world)
        others = [
            asyncio.create_task(
                group.ask("POST", f"{api}/scale_elastic_ep", {"new_data_parallel_size": 3}, 1.0)
            )
            for api in group.addresses
        ]
        await world.clock.sleep(1.0)
        assert await world.stage(FOUR) == Refused(
            "e0 is being resized already to 3 data-parallel ranks by vLLM's operation epoch-1: "
            "wait for that"
        )
        for other in others:
            await other


@in_virtual_time
async def test_vllms_own_limit_refuses_in_its_own_words() -> None:
    nine = a_placement([[0, 1, 2, 3] * 4 + [0, 1]] * 2, gpus=9)
    async with living() as world:
        world.capacity.limit = 9
        assert await world.stage(nine) == Done()
        why = "Cannot scale to data_parallel_size 9; --elastic-ep-max-dp-size is 8."
        assert await world.ask(Transfer(5)) == Refused(f"e0 stays as it is: {why}")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"most_ranks": 3}, "3 ranks are the most: --elastic-ep-max-dp-size says so"),
        ({"can_resize": False}, "it cannot change its width: start it with --enable-elastic-ep"),
        ({"api": ""}, "w0: PLACER_API is '': set it to http://host:port"),
        ({"api": "r0:8000"}, "w0: PLACER_API is 'r0:8000': set it to http://host:port"),
        ({"api": "http://r0:x"}, "w0: PLACER_API is 'http://r0:x': set it to http://host:port"),
        ({"api": "http://a:b@r0:1"}, "w0: PLACER_API is 'http://a:b@r0:1': set it to"),
        ({"tp_size": 3}, "4 ranks are no multiple of the 3 of a tensor-parallel group"),
    ],
)
@in_virtual_time
async def test_what_cannot_be_is_not_staged(said: dict[str, Any], why: str) -> None:
    world = Elastic()
    world.say(**said)
    refused = await world.stage(FOUR)
    assert isinstance(refused, Refused)
    assert refused.reason.startswith(why)
    assert group_of(world).posted == []


@in_virtual_time
async def test_slots_of_a_rank_are_what_they_are() -> None:
    three_each = a_placement([[0, 1, 2, 3] * 3] * 2, gpus=4)
    world = Elastic()
    assert await world.stage(three_each) == Refused("2 slots a rank are what it has at any width")


@in_virtual_time
async def test_servers_are_one_for_all_or_one_a_rank() -> None:
    world = Elastic(ranks=4)
    world.say(1, api="http://r0:8000")
    assert await world.stage(TWO) == Refused(
        "3 API servers of 4 data-parallel ranks: set PLACER_API to the one of all, or on each rank "
        "to its own"
    )


@in_virtual_time
async def test_tensor_parallel_ranks_are_asked_for_as_data_parallel_ones() -> None:
    async with living(external=False) as world:
        world.said["tp_size"] = 2
        world.say()
        await world.stage(FOUR)
        transfer = asyncio.create_task(world.ask(Transfer(5)))
        await world.clock.sleep(20.0)
        assert group_of(world).posted == [(0, 2)]
        transfer.cancel()


@in_virtual_time
async def test_a_new_controller_waits_for_what_the_one_before_began() -> None:
    async with living() as world:
        await world.stage(FOUR)
        transfer = asyncio.create_task(world.ask(Transfer(5)))
        await world.clock.sleep(15.0)
        assert group_of(world).phase == "preparing"
        new = VllmElastic(world.engines, world.capacity, group_of(world).ask)
        assert await new.carry_out(*ENGINE, Discard(5)) == Done()
        assert (group_of(world).phase, group_of(world).ranks) == ("completed", 4)
        await transfer


@in_virtual_time
async def test_an_engine_without_traffic_has_its_width_before_its_map() -> None:
    async with living() as world:
        world.takes_up = False
        assert all(isinstance(one, Done) for one in await world.walk(FOUR))
        assert world.offered == [5]


@in_virtual_time
async def test_ranks_without_agents_are_waited_for() -> None:
    async with living() as world:
        group_of(world).at_end = lambda ranks: None
        await world.stage(FOUR)
        for command in (Transfer(5), Switch(5)):
            assert isinstance(await world.ask(command), Done)
        group_of(world).ranks = 2  # as the agents see it
        release = asyncio.create_task(world.ask(Release(5)))
        await world.clock.sleep(2 * GONE_S)
        assert not release.done()
        group_of(world).ranks = 4
        assert await release == Done()


@in_virtual_time
async def test_nothing_of_it_is_asked_before_it_is_staged() -> None:
    world = Elastic()
    for command in (Transfer(5), Switch(5), Release(5)):
        assert await world.ask(command) == Refused("epoch 5 is not staged: stage it first")


@pytest.mark.parametrize("kind", CONTRACT)
@pytest.mark.parametrize("fails", ["", "prepare", "commit"])
@in_virtual_time
async def test_the_group_in_memory_keeps_to_the_contract(
    kind: tuple[int, bool], fails: str
) -> None:
    world = Elastic(2, *kind)
    group, table = group_of(world), CONTRACT[kind]
    group.fails = fails
    seen = [await rows(group.ask, group.addresses[0])]
    posts = [
        asyncio.create_task(
            group.ask("POST", f"{api}/scale_elastic_ep", {"new_data_parallel_size": 3}, 1.0)
        )
        for api in group.addresses
    ]
    for second in (15.0, 17.0, 17.0):  # 30 s until the commit, and 5 s of it
        await world.clock.sleep(second)
        seen.append(await rows(group.ask, group.addresses[0]))
    end = {"": "completed", "prepare": "not prepared", "commit": "not committed"}[fails]
    middle = "not prepared" if fails == "prepare" else "committing"
    assert seen == [table[one] for one in ("idle", "preparing", middle, end)]
    assert {(await post).status for post in posts} == {500 if fails else 200}
