"""Watch with a cursor: how all stands, then what changes, and going on where one was."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.policies.policy import Kept
from placer.v1 import fleet_pb2, placement_pb2, policy_pb2
from placer.v1.placement_pb2 import WatchRequest
from tests.controller.server.tiny_server import Setting, World, a_registration, a_world, refusal
from tests.controller.tiny_pool import asynchronous

OUT_OF_RANGE = grpc.StatusCode.OUT_OF_RANGE


def watch(world: World, cursor: int, **asked: Any) -> Any:
    return world.placement.Watch(WatchRequest(cursor=cursor, **asked))


async def until_synced(stream: Any) -> tuple[list[tuple[str, str, int]], int]:
    """What it says up to the marker, and the marker's cursor. Cursors never fall."""
    heard, cursors = [], [0]
    while not (said := await stream.read()).synced:
        heard.append((said.record.kind, said.record.id, said.record.version))
        cursors.append(said.cursor)
    assert cursors == sorted(cursors)
    assert not said.HasField("record")
    assert said.cursor >= cursors[-1]
    return heard, said.cursor


async def lived(world: World) -> None:
    """A policy in its second version, a plan that was rejected, and one that is proposed."""
    await world.traffic()
    for version in (0, 1):
        request = policy_pb2.PutPolicyRequest(pool="tiny", policy="mode: advisory", version=version)
        await world.policy.PutPolicy(request)
    await world.proposed()
    await world.placement.Reject(placement_pb2.RejectRequest(plan_id="plan-1"))
    await world.proposed()


def decide(world: World, number: int, pool: str = "tiny") -> None:
    world.loop.ledger.write("decision", f"decision-{number}", "why", Kept(), pool=pool)


@asynchronous
async def test_0_is_how_all_stands_then_a_marker_then_changes() -> None:
    async with a_world() as world:
        await lived(world)
        decide(world, 1)
        decide(world, 2, "other")
        decide(world, 3)
        stream = watch(world, 0)
        heard, cursor = await until_synced(stream)
        assert heard == [
            ("policy", "tiny", 2),
            ("plan", "plan-1", 2),
            ("plan", "plan-2", 1),
            ("decision", "decision-2", 1),
            ("decision", "decision-3", 1),
        ]
        await world.placement.Approve(placement_pb2.ApproveRequest(plan_id="plan-2"))
        said = await stream.read()
        assert (said.record.id, said.record.version, said.synced) == ("plan-2", 2, False)
        assert said.cursor > cursor


@asynchronous
async def test_who_comes_back_hears_every_version_that_it_missed() -> None:
    async with a_world() as world:
        await lived(world)
        stream = watch(world, 0)
        _, cursor = await until_synced(stream)
        stream.cancel()
        await world.placement.Approve(placement_pb2.ApproveRequest(plan_id="plan-2"))
        await world.loop.tick()
        await world.loop.arbiter.settle()
        heard, after = await until_synced(watch(world, cursor))
        plans = [version for kind, id, version in heard if (kind, id) == ("plan", "plan-2")]
        assert plans == [2, 3, 4]
        assert {kind for kind, _, _ in heard} >= {"plan", "operation"}
        assert await until_synced(watch(world, after)) == ([], after)


@asynchronous
async def test_a_stream_that_broke_in_the_middle_goes_on_from_its_last_record() -> None:
    async with a_world() as world:
        await lived(world)
        stream = watch(world, 0)
        first = await stream.read()
        stream.cancel()
        heard, _ = await until_synced(watch(world, first.cursor))
        assert [(kind, id) for kind, id, _ in heard][-1] == ("plan", "plan-2")
        assert first.record.id not in {id for _, id, _ in heard}


@asynchronous
async def test_it_is_of_one_pool_if_that_is_asked() -> None:
    async with a_world() as world:
        await lived(world)
        decide(world, 1, "other")
        heard, _ = await until_synced(watch(world, 0, pool="other"))
        assert heard == [("decision", "decision-1", 1)]


@asynchronous
async def test_what_is_forgotten_makes_older_cursors_too_old() -> None:
    async with a_world() as world:
        await lived(world)
        decide(world, 1)
        _, before = await until_synced(watch(world, 0))
        decide(world, 2)
        decide(world, 3)
        _, after = await until_synced(watch(world, before))
        world.loop.ledger.prune("decision", keep=1, retention_s=1e6)
        assert await refusal(until_synced(watch(world, before))) == (
            OUT_OF_RANGE,
            f"{before} is too old, or another ledger's: watch again from 0",
        )
        assert (await until_synced(watch(world, after)))[0] == []
        heard, _ = await until_synced(watch(world, 0))
        assert heard[-1] == ("decision", "decision-3", 1)


@asynchronous
async def test_a_cursor_of_another_ledger_is_refused() -> None:
    async with a_world() as world:
        assert (await refusal(until_synced(watch(world, 10_000))))[0] is OUT_OF_RANGE


@pytest.mark.parametrize("cursor", [0, 1])
@asynchronous
async def test_an_agent_hears_of_offers_whatever_cursor_it_gives(cursor: int) -> None:
    async with a_world() as world:
        await world.register()
        stream = watch(world, cursor, pool="tiny", engine="engine-1")
        world.offers._offers["tiny", "engine-1"] = (5, b"a plan")
        said = await stream.read()
        assert (said.epoch, said.file, said.synced) == (5, b"a plan", False)


@asynchronous
async def test_a_controller_that_starts_again_goes_on_with_its_cursors(tmp_path: Path) -> None:
    setting = Setting(ledger=tmp_path / "ledger.db")
    async with a_world(setting) as world:
        await lived(world)
        _, cursor = await until_synced(watch(world, 0))
    async with a_world(setting) as world:
        await world.fleet.Register(a_registration(epoch=7, digest="sha256:7"))
        heard, _ = await until_synced(watch(world, cursor))
        assert heard == [("acknowledgement", "tiny/engine-1/worker-0", 1)]
        assert (await world.fleet.Status(fleet_pb2.StatusRequest())).ledger_id
