"""Agents of the release before, heard and answered by this controller."""

import asyncio

from controller.migration.commands import Done, Stage
from placer.files.plans import parse_plan
from placer.v1 import fleet_pb2, placement_pb2
from tests import release_before
from tests.builders import a_placement
from tests.controller.server.tiny_server import IN_ORDER, SWAPPED, World, a_world
from tests.controller.tiny_pool import asynchronous, only

SECOND = fleet_pb2.RegisterRequest.FromString(release_before.REGISTRATION)
SECOND.id.worker = SECOND.worker.name = "worker-1"
SECOND.worker.ep_rank = 1


async def registered(world: World, request: bytes) -> bytes:
    register = world.channel.unary_unary("/placer.v1.FleetService/Register")
    answer: bytes = await register(request)
    return answer


@asynchronous
async def test_they_are_counted_and_answered_as_before() -> None:
    async with a_world() as world:
        answer = await registered(world, release_before.REGISTRATION)
        assert answer == release_before.REGISTERED
        push = world.channel.stream_stream("/placer.v1.ProfileService/Push")
        assert [one async for one in push(iter(release_before.PUSHES))] == release_before.PUSHED
        now_s = world.loop.ledger.clock.monotonic()
        group = only(world.loop.fleet.pool("tiny"))
        loads = {phase: group.profile(phase, now_s) for phase in ("prefill", "decode")}
        assert {phase: one and one.load.tolist() for phase, one in loads.items()} == {
            "prefill": [[4, 0, 0, 2], [0, 4, 2, 0]],  # both pushes
            "decode": [[0, 0, 2, 0], [0, 0, 2, 0]],
        }


@asynchronous
async def test_they_get_plans_that_they_can_read() -> None:
    async with a_world() as world:
        for one in (release_before.REGISTRATION, SECOND.SerializeToString()):
            await registered(world, one)
        change = Stage(7, a_placement(IN_ORDER), a_placement(SWAPPED))
        staging = asyncio.create_task(world.offers.carry_out("tiny", "host-1", change))
        watch = world.channel.unary_stream("/placer.v1.PlacementService/Watch")
        async for answer in watch(release_before.WATCH):
            offered = placement_pb2.WatchResponse.FromString(answer)
            break
        assert await staging == Done()
        before = placement_pb2.WatchResponse.FromString(release_before.OFFERED)
        assert offered.epoch == before.epoch == 7
        plans = [parse_plan(one.file.decode(), "-") for one in (offered, before)]
        assert plans[0].placement.digest == plans[1].placement.digest
