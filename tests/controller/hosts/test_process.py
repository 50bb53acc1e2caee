"""A controller in a plain process: it plans, ends, and goes on from its ledger."""

from pathlib import Path

import pytest

from controller.assemble import Setup
from controller.config import Config
from controller.fleet.workers import Fleet
from controller.hosts.process import NoActors, end, launch, look
from controller.migration.commands import Agree, Lost
from controller.ports import EngineLostError
from controller.server.security import Listening
from placer.channel import Settings, open_aio_channel
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.v1 import placement_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub
from tests.controller.server.tiny_server import HOT, POLICY, a_count, a_push, a_registration
from tests.controller.tiny_pool import asynchronous


def a_setup(folder: Path, address: str = "127.0.0.1:0") -> Setup:
    return Setup(Config(POLICY), Listening(address), folder / "placer.db")


@asynchronous
async def test_it_plans_in_other_processes_and_goes_on_from_its_ledger(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        hosted, port = launch(a_setup(tmp_path))
        try:
            assert look(hosted) == port
            async with open_aio_channel(f"127.0.0.1:{port}", Settings()) as channel:
                fleet, placement = FleetServiceStub(channel), PlacementServiceStub(channel)
                for rank in (1, 0):
                    told = a_registration(worker=f"worker-{rank}", changes={"ep_rank": rank})
                    known = (await fleet.Register(told)).sequence
                pushes = iter([a_push(known + 1, counts=[a_count(HOT)])])
                pushed = ProfileServiceStub(channel).Push(pushes)
                assert [one.refused async for one in pushed] == [""]
                answer = await placement.Propose(placement_pb2.ProposeRequest(pool="tiny"))
                assert answer.outcome == "plan", answer.reason
                ids.append(answer.plan.id)
        finally:
            end(hosted)
    assert ids == ["plan-1", "plan-2"]


def test_one_that_cannot_listen_says_why_and_leaves_its_ledger(tmp_path: Path) -> None:
    hosted, port = launch(a_setup(tmp_path))
    try:
        with pytest.raises(PlacerError, match="in use"):
            launch(a_setup(tmp_path))
        with pytest.raises(PlacerError, match=str(port)):
            launch(Setup(Config(POLICY), Listening(f"127.0.0.1:{port}"), tmp_path / "other.db"))
    finally:
        end(hosted)
    hosted, _ = launch(a_setup(tmp_path))
    end(hosted)


@asynchronous
async def test_an_engine_that_is_rays_cannot_be_reached() -> None:
    door = NoActors(Fleet(lambda pool: 300.0, SystemClock()))
    why = "e0 of chat is a Ray actor, and this controller runs without Ray: give --host ray"
    with pytest.raises(EngineLostError, match=why):
        await door.stands("chat", "e0")
    assert await door.carry_out("chat", "e0", Agree(1)) == Lost(why)
