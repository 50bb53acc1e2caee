"""What agents' tokens let them say and hear: as workers of those names only."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.migration.commands import Done, Stage
from controller.policies.policy import Kept
from placer.channel import Settings, open_aio_channel
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2 import WatchRequest
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from tests.builders import a_placement
from tests.controller.server.tiny_server import (
    IN_ORDER,
    SWAPPED,
    Setting,
    World,
    a_push,
    a_registration,
    a_world,
    refusal,
    until,
)
from tests.controller.server.tiny_service import AGENT, OPERATOR, write
from tests.controller.tiny_pool import asynchronous, only

DENIED = grpc.StatusCode.PERMISSION_DENIED
OTHER = "others-secret-0001"
ALONE = "an agent's token is for its own engine alone: name pool and engine, or use an operator's"


def bound(tmp_path: Path, *names: str, token: str = AGENT) -> Setting:
    """The agent's token is for those names, in YAML; without any, for all."""
    entries = "".join(f"  - {{token: {AGENT}, {one}}}\n" for one in names) or f"  - {AGENT}\n"
    text = f"agent:\n{entries}  - {OTHER}\noperator: [{OPERATOR}]\n"
    return Setting(tokens=write(tmp_path / "tokens.yaml", text), token=token)


def watch(world: World, **asked: Any) -> Any:
    return world.placement.Watch(WatchRequest(**asked)).read()


async def is_heard(call: Any) -> bool:
    """Whether it is not turned away; a watch says nothing."""
    try:
        async with asyncio.timeout(0.3):
            await call
    except grpc.aio.AioRpcError as error:
        return error.code() is not DENIED
    except TimeoutError:
        return True
    return True


@pytest.mark.parametrize("asked", [{}, {"pool": "tiny"}, {"engine": "engine-1"}])
@asynchronous
async def test_an_agent_hears_no_records_and_must_say_whose_plans_it_wants(
    tmp_path: Path, asked: dict[str, str]
) -> None:
    async with a_world(bound(tmp_path)) as world:
        await world.register()
        assert await refusal(watch(world, **asked)) == (DENIED, ALONE)
        assert not world.loop.ledger._watchers


@asynchronous
async def test_an_operator_hears_everything(tmp_path: Path) -> None:
    async with a_world(bound(tmp_path, token=OPERATOR)) as world:
        for asked in (WatchRequest(), WatchRequest(pool="tiny")):
            stream = world.placement.Watch(asked)
            await until(lambda: world.loop.ledger._watchers)
            world.loop.ledger.write("decision", f"of-{asked.pool}", "why", Kept(), pool="tiny")
            assert (await stream.read()).record.reason == "why"
            stream.cancel()
            await until(lambda: not world.loop.ledger._watchers)


NAMES: dict[str, tuple[list[str], set[str]]] = {
    "any": ([], {"tiny/engine-1/worker-0", "tiny/engine-1/worker-1", "tiny/engine-2/worker-0",
                 "other/engine-1/worker-0"}),
    "a pool": (["pool: tiny"], {"tiny/engine-1/worker-0", "tiny/engine-1/worker-1",
                                "tiny/engine-2/worker-0"}),
    "an engine": (["pool: tiny, engine: engine-1"],
                  {"tiny/engine-1/worker-0", "tiny/engine-1/worker-1"}),
    "a worker": (["pool: tiny, engine: engine-1, worker: worker-0"], {"tiny/engine-1/worker-0"}),
    "two": (["pool: other", "engine: engine-2"],
            {"other/engine-1/worker-0", "tiny/engine-2/worker-0"}),
    "nobody's": (["pool: tiny, engine: engine-9"], set()),
}  # fmt: skip


@pytest.mark.parametrize(("names", "may"), NAMES.values(), ids=NAMES)
@asynchronous
async def test_a_token_is_for_its_names_alone(
    tmp_path: Path, names: list[str], may: set[str]
) -> None:
    async with a_world(bound(tmp_path, *names)) as world:
        for who in sorted(NAMES["any"][1]):
            pool, engine, worker = who.split("/")
            own: dict[str, Any] = {"pool": pool, "engine": engine, "worker": worker}
            assert await is_heard(world.register(**own)) == (who in may)
            assert await is_heard(world.pushed(a_push(**own))) == (who in may)
            its_engine = any(one.startswith(f"{pool}/{engine}/") for one in may)
            assert await is_heard(watch(world, pool=pool, engine=engine)) == its_engine
        assert {
            f"{pool.name}/{engine}/{worker}"
            for pool in world.loop.fleet.pools.values()
            for engine, worker in pool.members
        } == may


@asynchronous
async def test_who_is_turned_away_is_told_why_and_leaves_no_trace(tmp_path: Path) -> None:
    async with a_world(bound(tmp_path, "engine: engine-1")) as world:
        why = (
            "this token is not for worker-0 of engine-2 in tiny: see its names in the controller's "
            "tokens, and PLACER_POOL and PLACER_ENGINE"
        )
        assert await refusal(world.register(engine="engine-2", epoch=3)) == (DENIED, why)
        assert await refusal(watch(world, pool="tiny", engine="engine-2")) == (
            DENIED, why.replace("worker-0 of ", ""),
        )  # fmt: skip
        assert (world.loop.fleet.pools, world.loop.ledger.records.history()) == ({}, [])


@asynchronous
async def test_each_push_of_a_stream_is_looked_at(tmp_path: Path) -> None:
    async with a_world(bound(tmp_path, "engine: engine-1")) as world:
        await world.register()
        async with open_aio_channel(world.address, Settings(OPERATOR)) as channel:
            await FleetServiceStub(channel).Register(a_registration("engine-2"))
        pushes = a_push(1), a_push(1, engine="engine-2")
        code, _ = await refusal(world.pushed(*pushes))
        assert code is DENIED
        assert only(world.loop.fleet.pool("tiny")).tokens("mixed") == 1200


@asynchronous
async def test_calls_at_once_are_each_their_own_callers(tmp_path: Path) -> None:
    """An agent's plans come though an operator's call begins and ends meanwhile."""

    async with a_world(bound(tmp_path, "pool: tiny, engine: engine-1")) as world:
        for rank in (0, 1):
            await world.register(worker=f"worker-{rank}", changes={"ep_rank": rank})
        own = world.placement.Watch(WatchRequest(pool="tiny", engine="engine-1"))
        async with (
            open_aio_channel(world.address, Settings(OPERATOR)) as operators,
            open_aio_channel(world.address, Settings(OTHER)) as others,
        ):
            everything = PlacementServiceStub(operators).Watch(WatchRequest())
            nothing = PlacementServiceStub(others).Watch(WatchRequest())
            assert (await refusal(nothing.read()))[0] is DENIED
            await until(lambda: len(world.loop.ledger._watchers) == 1)
            stage = Stage(5, a_placement(IN_ORDER), a_placement(SWAPPED))
            assert isinstance(await world.offers.carry_out("tiny", "engine-1", stage), Done)
            assert (await own.read()).epoch == 5
            await world.register(epoch=9, digest="sha256:ab")
            assert (await everything.read()).record.kind == "acknowledgement"
