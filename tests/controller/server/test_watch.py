"""Watch: what agents and operators hear, and that nobody is left behind."""

import asyncio
import sys
from contextlib import suppress
from typing import Any

import grpc
import pytest

from controller.ledger import watched
from controller.migration.commands import Done, Refused, Stage
from controller.policies.policy import Kept
from placer.files.plans import parse_plan
from placer.v1.placement_pb2 import ApplyRequest, WatchRequest
from tests.builders import a_placement
from tests.controller.server.tiny_server import (
    IN_ORDER,
    SWAPPED,
    World,
    a_world,
    refusal,
    until,
)
from tests.controller.tiny_pool import asynchronous

BEFORE, AFTER = a_placement(IN_ORDER), a_placement(SWAPPED)


WATCHES = """
import sys
import grpc
from placer.v1.placement_pb2 import WatchRequest
from placer.v1.placement_pb2_grpc import PlacementServiceStub
list(PlacementServiceStub(grpc.insecure_channel(sys.argv[1])).Watch(WatchRequest()))
"""


async def both_ranks(world: World, **said: Any) -> None:
    for rank in (0, 1):
        await world.register(worker=f"worker-{rank}", changes={"ep_rank": rank}, **said)


async def offer(world: World, epoch: int, engine: str = "engine-1") -> Any:
    return await world.offers.carry_out("tiny", engine, Stage(epoch, BEFORE, AFTER))


def watch(world: World, engine: str = "engine-1", **asked: Any) -> Any:
    return world.placement.Watch(WatchRequest(pool="tiny", engine=engine, **asked))


async def silent(stream: Any) -> bool:
    """Whether it says nothing for a while; the stream is over then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await stream.read()
            return False
    return True


@asynchronous
async def test_an_engine_hears_what_it_should_apply_and_who_comes_late_does_at_once() -> None:
    async with a_world() as world:
        await both_ranks(world)
        early = watch(world)
        assert isinstance(await offer(world, 5), Done)
        late = watch(world)
        for stream in (early, late):
            found = await stream.read()
            assert found.epoch == 5
            assert parse_plan(found.file.decode(), "it").placement.digest == AFTER.digest
            assert not found.HasField("record")


@asynchronous
async def test_of_two_offers_who_comes_late_hears_the_newest_alone_and_only_later_epochs() -> None:
    async with a_world() as world:
        await both_ranks(world)
        await offer(world, 5)
        await offer(world, 6)
        assert (await watch(world).read()).epoch == 6
        knows = watch(world, after_epoch=6)
        assert (await watch(world, after_epoch=5).read()).epoch == 6
        await offer(world, 7)
        assert (await knows.read()).epoch == 7
        assert await silent(watch(world, after_epoch=7))


@asynchronous
async def test_an_offer_is_one_engines_alone() -> None:
    async with a_world() as world:
        await both_ranks(world)
        other = watch(world, "engine-2")
        await offer(world, 5)
        assert await silent(other)


@asynchronous
async def test_a_plan_for_another_map_or_by_too_few_ranks_is_not_offered() -> None:
    async with a_world() as world:
        await both_ranks(world)
        stream = watch(world)
        stale = await world.offers.carry_out("tiny", "engine-1", Stage(5, AFTER, BEFORE))
        assert isinstance(stale, Refused)
        await world.register(engine="engine-2")
        few = await offer(world, 5, "engine-2")
        assert few.reason == "1 of 2 ranks of engine-2 are heard"
        assert await silent(stream)


@asynchronous
async def test_an_operator_hears_of_every_record_but_maps() -> None:
    async with a_world() as world:
        await world.traffic()
        all_of_it = world.placement.Watch(WatchRequest())
        of_pool = world.placement.Watch(WatchRequest(pool="tiny"))
        of_other = world.placement.Watch(WatchRequest(pool="other"))
        await until(lambda: len(world.loop.ledger._watchers) == 3)
        plan = await world.proposed()
        await world.placement.Apply(ApplyRequest(plan_id=plan.id))
        await world.loop.arbiter.settle()
        for stream in (all_of_it, of_pool):
            heard: list[Any] = []
            while not heard or heard[-1] != ("plan", "plan-1", 4):
                record = (await stream.read()).record
                heard.append((record.kind, record.id, record.version))
            assert heard[0] == ("plan", "plan-1", 1)
            assert {kind for kind, _, _ in heard} == {"plan", "operation"}
        assert await silent(of_other)


@asynchronous
async def test_a_watcher_that_does_not_read_is_told_that_it_missed_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watched, "BACKLOG", 3)

    async with a_world() as world:
        stream = world.placement.Watch(WatchRequest())
        await until(lambda: world.loop.ledger._watchers)
        for number in range(5):  # without waiting, so that nothing is sent in between
            world.loop.ledger.write("decision", f"tiny@{number}", "why", Kept(), pool="tiny")

        async def read_on() -> None:
            async for _ in stream:
                pass

        assert await refusal(read_on()) == (
            grpc.StatusCode.UNAVAILABLE,
            "3 changes were not read in time: watch again, or less",
        )
        assert not world.loop.ledger._watchers


@pytest.mark.parametrize("how", ["cancels", "closes its connection", "is killed"])
@asynchronous
async def test_a_client_that_vanishes_leaves_no_watcher_behind(how: str) -> None:
    async with a_world() as world:
        watchers = world.loop.ledger._watchers
        streams = [world.placement.Watch(WatchRequest()) for _ in range(5)]
        await until(lambda: len(watchers) == 5)
        if how == "is killed":
            for stream in streams:
                stream.cancel()
            arguments = (sys.executable, "-c", WATCHES, world.address)
            child = await asyncio.create_subprocess_exec(*arguments)
            await until(lambda: len(watchers) == 1)
            child.kill()
            await child.wait()
        world.loop.ledger.write("decision", "tiny@0", "why", Kept(), pool="tiny")
        if how == "cancels":
            for stream in streams:
                stream.cancel()
        if how == "closes its connection":
            await world.channel.close()
        await until(lambda: not watchers)


@asynchronous
async def test_engines_that_vanish_leave_nobody_waiting_for_offers() -> None:
    async with a_world() as world:
        streams = [watch(world) for _ in range(5)]
        waiting = world.offers._changed._waiters
        await until(lambda: len(waiting) == 5)
        for stream in streams:
            stream.cancel()
        await until(lambda: not waiting)


@asynchronous
async def test_a_deadline_ends_a_watch() -> None:
    async with a_world() as world:
        stream = world.placement.Watch(WatchRequest(), timeout=0.2)
        code, _ = await refusal(stream.read())
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not world.loop.ledger._watchers)
