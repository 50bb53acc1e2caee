"""Table files on real servers: what they are made of and for which map, and who may have them."""

from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from controller.config import Traces
from controller.fleet import token_tables
from controller.fleet.homing import Homed, Homing
from controller.server import given_tables
from placer.channel import Settings, open_aio_channel
from placer.files.tables import read_tables
from placer.tables import Tables
from placer.v1 import fleet_pb2, placement_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub
from tests.builders import a_model, a_placement
from tests.controller.server.test_traces import READER, TOKENS, WANTED, a_sampled_push, a_trace
from tests.controller.server.tiny_server import (
    IN_ORDER,
    SWAPPED,
    Setting,
    World,
    a_registration,
    a_world,
    refusal,
)
from tests.controller.server.tiny_service import AGENT, OPERATOR, write
from tests.controller.tiny_pool import asynchronous

FRONT, FAILED = "fronts-secret-0001", grpc.StatusCode.FAILED_PRECONDITION
PROPOSAL = placement_pb2.ProposeRequest(pool="tiny")
STANDS = a_placement(IN_ORDER).digest


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.yaml", TOKENS)


async def file(world: World, token: str = READER, pool: str = "tiny", digest: str = "") -> bytes:
    async with open_aio_channel(world.address, Settings(token)) as channel:
        request = placement_pb2.TablesRequest(pool=pool, digest=digest)
        answers = PlacementServiceStub(channel).Tables(request)
        return b"".join([answer.part async for answer in answers])


def understood(place: Path, content: bytes) -> Tables:
    (place / "t.npz").write_bytes(content)
    return read_tables(place / "t.npz")


@asynchronous
async def test_they_are_made_of_sampled_requests_for_what_stands(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.server.messages.sampled.PART", 100)  # in many answers
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        await world.pushed(a_sampled_push())
        found = understood(tmp_path, await file(world))
        assert (found.origin.plan, found.origin.model) == (STANDS, "tiny")
        assert (found.origin.tokens, found.origin.keyed_by) == (5, "token ids")
        assert found.devices.vocabulary.tokens.tolist() == list(range(70_000, 70_005))
        # Of the second one: expert 2 in both layers, on GPU 1.
        assert found.devices.device[:, 1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [([2] * 8, 2.0), ([], 1.0)],  # of halves that are alike if nobody tells where answers begin
)
@asynchronous
async def test_answers_are_as_far_from_the_mean_as_of_sampled_requests(
    tokens: Path, tmp_path: Path, prompts: list[int], answers: float
) -> None:
    """Token and expert 0 or 1, then 2, which all requests have: that is the prompt, and the answer
    is twice the first."""
    ids = np.array([[kind, 2, kind, kind if prompts else 2] for kind in (0, 1) * 4])
    experts = np.repeat(ids.ravel(), 2).astype("<u2").tobytes()
    told = a_trace(
        seq_lens=[4] * 8, prompt_lens=prompts, expert_ids=experts,
        token_ids=ids.astype("<u4").tobytes(),
    )  # fmt: skip
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        await world.pushed(a_sampled_push(trace=told))
        found = understood(tmp_path, await file(world))
        assert found.used.further == pytest.approx(answers, rel=1e-3)


@asynchronous
async def test_they_are_made_for_a_plan_too_before_it_is_served(
    tokens: Path, tmp_path: Path
) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.traffic()
        await world.pushed(a_sampled_push(2))
        plan = await world.proposed(SWAPPED)
        found = understood(tmp_path, await file(world, digest=plan.digest))
        assert found.origin.plan == plan.digest == a_placement(SWAPPED).digest
        assert found.devices.device[:, 1].tolist() == [0, 0]  # expert 2 has changed places


@asynchronous
async def test_new_requests_and_another_map_make_others(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.traffic()
        await world.pushed(a_sampled_push(2))
        first = await file(world)
        await world.pushed(a_sampled_push(3))
        assert await file(world) == first  # a minute is not over
        plan = await world.proposed(SWAPPED)
        assert understood(tmp_path, await file(world, digest=plan.digest)).origin.tokens == 10
        assert understood(tmp_path, await file(world)).origin.tokens == 10  # of the other again
        monkeypatch.setattr(token_tables, "REMADE_S", 0.0)
        monkeypatch.setattr(token_tables, "REST", 0.0)
        await file(world, digest=plan.digest)
        await world.pushed(a_sampled_push(4))
        assert understood(tmp_path, await file(world, digest=plan.digest)).origin.tokens == 15


@asynchronous
async def test_who_watches_gets_others_when_there_are_and_why_there_are_none(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.server.messages.sampled.PART", 100)
    monkeypatch.setattr(given_tables, "LOOK_S", 0.01)
    monkeypatch.setattr(given_tables, "AGAIN_S", 0.02)
    policy = replace(WANTED, least_tokens=1)
    async with a_world(Setting(policy, tokens=tokens, token=READER)) as world:
        request = placement_pb2.TablesRequest(pool="tiny", watch=True)
        watch = world.placement.Tables(request)

        async def next_one() -> Tables | str:
            parts: list[bytes] = []
            async for answer in watch:
                if answer.reason:
                    return str(answer.reason)
                assert answer.HasField("seconds") is not bool(parts)
                parts.append(answer.part)
                if answer.last:
                    break
            return understood(tmp_path, b"".join(parts))

        assert "no pool 'tiny'" in str(await next_one())
        async with open_aio_channel(world.address, Settings(OPERATOR)) as channel:
            await FleetServiceStub(channel).Register(a_registration(digest=STANDS))
        assert "no requests of tiny with token ids are kept" in str(await next_one())
        async with open_aio_channel(world.address, Settings(OPERATOR)) as channel:
            pushes = ProfileServiceStub(channel).Push(iter([a_sampled_push()]))
            assert [answer.refused async for answer in pushes] == [""]
        first = await next_one()
        assert isinstance(first, Tables)
        assert first.origin.plan == STANDS
        for engine in world.engines.engines.values():
            engine.placement = a_placement(SWAPPED)
        second = await next_one()
        assert isinstance(second, Tables)
        assert second.origin.plan == a_placement(SWAPPED).digest
        world.loop.homings.of["tiny"] = Homing({}, "it does not pay", pays=False)
        assert await next_one() == "requests of tiny: it does not pay"
        world.loop.homings.of.clear()  # those requests are forgotten
        assert isinstance(await next_one(), Tables)


@asynchronous
async def test_they_are_no_business_of_agents(tokens: Path) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        code, told = await refusal(file(world, AGENT))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "PlacementService/Tables is for fronts and trace readers" in told


@asynchronous
async def test_a_front_sees_the_fleet_and_its_tables_and_no_more(tokens: Path) -> None:
    tokens.write_text(f"{TOKENS}front: [{FRONT}]\n")
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        await world.pushed(a_sampled_push())
        assert await file(world, FRONT)
        async with open_aio_channel(world.address, Settings(FRONT)) as channel:
            await FleetServiceStub(channel).Status(fleet_pb2.StatusRequest())
            code, told = await refusal(PlacementServiceStub(channel).Propose(PROPOSAL))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "and this is a front's token" in told


@asynchronous
async def test_where_they_win_nothing_there_are_none_and_status_says_why(tokens: Path) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        await world.pushed(a_sampled_push())
        lost = Homing({"tables": Homed(40, 0.5, 0.9, 0.01)}, "it does not pay", pays=False)
        world.loop.homings.of["tiny"] = lost
        code, told = await refusal(file(world))
        assert (code, told) == (FAILED, "requests of tiny: it does not pay")
        (pool,) = (await world.fleet.Status(fleet_pb2.StatusRequest(pool="tiny"))).pools
        assert pool.homing.reason == "it does not pay"
        (group,) = pool.homing.groups
        assert (group.by, group.requests, group.local, group.remote) == ("tables", 40, 0.5, 0.9)


@asynchronous
async def test_history_tells_when_requests_begin_to_go_by_load_and_when_no_longer(
    tokens: Path,
) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        look, homings = world.loop.looks["homes"], world.loop.homings.of
        for pays in (True, False, False, True):
            homings["tiny"] = Homing({}, f"pays: {pays}", pays)
            await look()
        found = [one.value for one in world.loop.ledger.records.newest("decision", pool="tiny")]
        told = [(one.outcome, one.reason) for one in found if one.policy == "homes"]
        assert told == [("by tables", "pays: True"), ("by load", "pays: False")]


@asynchronous
async def test_marked_requests_are_judged_by_the_rank_that_pushed_them(tokens: Path) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register(digest=STANDS)
        await world.pushed(a_sampled_push(trace=a_trace(marks=[1, 2])))
        await world.loop.looks["homes"]()
        assert set(world.loop.homings.of["tiny"].groups) == {"tables", "load"}
        assert await world.pushed(a_sampled_push(2, trace=a_trace(marks=[1, 3]))) == [
            (2, "marks [1, 3] of 2 sampled requests: 0, 1 or 2 each")
        ]


@asynchronous
async def test_tables_foretell_the_requests_that_come_after_them(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first request's tokens half is at home; it comes again, and then all of it is."""
    monkeypatch.setattr(token_tables, "REMADE_S", 0.0)
    monkeypatch.setattr(token_tables, "REST", 0.0)
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register(digest=STANDS)
        await world.pushed(a_sampled_push(trace=a_trace(marks=[1, 2])))
        await file(world)
        at_home = a_trace(marks=[1, 2], expert_ids=np.zeros((5, 2, 1), dtype="<u2").tobytes())
        await world.pushed(a_sampled_push(2, trace=at_home))
        await file(world)
        await world.loop.looks["homes"]()
        (pool,) = (await world.fleet.Status(fleet_pb2.StatusRequest(pool="tiny"))).pools
        ours = next(one for one in pool.homing.groups if one.by == "tables")
        assert (ours.requests, ours.local, ours.predicted) == (4, 0.75, 0.5)
        assert (ours.remote, ours.predicted_remote) == (0.25, pytest.approx(0.5))
        assert not ours.HasField("distinct")  # of so few
        assert not ours.HasField("predicted_distinct")


@asynchronous
async def test_who_speaks_for_several_ranks_says_which_served_a_request(tokens: Path) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register(digest=STANDS)
        await world.pushed(a_sampled_push(trace=a_trace(ranks=[1, 0])))
        kept = [one.rank for _, one in world.loop.traces.of("tiny", a_model())]
        assert kept == [1, 1, 0]  # prompt, answer; the second has no prompt
        assert await world.pushed(a_sampled_push(2, trace=a_trace(ranks=[1]))) == [
            (2, "1 ranks of 2 sampled requests")
        ]


@asynchronous
async def test_without_token_ids_there_are_none(tokens: Path) -> None:
    policy = replace(WANTED, traces=Traces(100, 900.0, False))
    async with a_world(Setting(policy, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        await world.pushed(a_sampled_push(trace=a_trace(token_ids=b"")))
        code, told = await refusal(file(world))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "no requests of tiny with token ids are kept: set traces.requests and" in told


@asynchronous
async def test_they_are_for_the_vocabulary_that_engines_tell_of_and_for_no_two(
    tokens: Path, tmp_path: Path
) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register(changes={"vocabulary": "sha256:a"})
        await world.pushed(a_sampled_push())
        assert understood(tmp_path, await file(world)).origin.vocabulary == "sha256:a"
        await world.pushed(a_sampled_push(2))
        await world.register(engine="engine-2", changes={"vocabulary": "sha256:b"})
        await world.proposed(SWAPPED)
        digest = a_placement(SWAPPED).digest
        told = (await refusal(file(world, digest=digest)))[1]
        assert "engines of tiny have vocabularies sha256:a and sha256:b" in told


@asynchronous
async def test_a_pool_or_a_map_that_is_not_known_is_named(tokens: Path) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        assert "no pool 'huge'" in (await refusal(file(world, pool="huge")))[1]
        told = (await refusal(file(world, digest="sha256:0123456789abcdef")))[1]
        assert "the ledger has no placement sha256:0123456789ab..." in told
