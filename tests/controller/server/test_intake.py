"""One request costs the controller bounded work, whatever it holds and whatever is known."""

import threading
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.server import intake
from controller.server.messages import wire
from controller.server.strangers import Spacing
from placer.errors import ModelError
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2 import ExplainRequest, HistoryRequest, StatusRequest
from placer.v1.placement_pb2 import ApproveRequest, ListRequest, ProposeRequest, RollbackRequest
from tests.controller.server.tiny_server import (
    World,
    a_count,
    a_file,
    a_push,
    a_world,
    refusal,
)
from tests.controller.tiny_pool import asynchronous, only

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
COUNTS = b"\x22\x00"  # an empty one, as it is on the wire


async def raw(world: World, method: str, data: bytes) -> Any:
    return await world.channel.unary_unary(f"/placer.v1.{method}")(data)


async def raw_push(world: World, data: bytes) -> Any:
    stream = world.channel.stream_stream("/placer.v1.ProfileService/Push")
    return [answer async for answer in stream(iter([data]))]


PUSHES = {
    "of a million phases": (COUNTS * 1_000_000, "a push with more than 32 fields: it has 2 phases"),
    "of a phase with half a million tokens": (
        b"\x22\x80\x80\x40" + b"\x28\x01" * 2**19,  # and 2**20 bytes: one that is large
        "counts with more than 32 fields",
    ),
    "of a thousand fields of tomorrow": (b"\x78\x01" * 1000, "a push with more than 32 fields"),
    "of groups": (b"\x7b\x7c", "a push with fields of wire type 3"),
    "that is cut short": (a_push().SerializeToString()[:-1], "with bytes that are no request"),
    "that is cut short between two fields": (
        a_push().SerializeToString()[: -len(a_count().load) - 2],
        "with bytes that are no request",
    ),
    "that ends in a number": (b"\x10\x80", "with bytes that are no request"),
    "of a number without end": (b"\x10" + b"\xff" * 40, "with bytes that are no request"),
    "with a long name": (a_push(worker="w" * 1001).SerializeToString(), "worker has 1,001 charact"),
}


@pytest.mark.parametrize(("data", "why"), PUSHES.values(), ids=PUSHES)
@asynchronous
async def test_a_push_is_looked_at_before_objects_are_made_of_it(data: bytes, why: str) -> None:
    async with a_world() as world:
        await world.register()
        code, told = await refusal(raw_push(world, data))
        assert (code, why in told) == (INVALID, True), told
        assert await world.pushed(a_push()) == [(1, "")]


@asynchronous
async def test_what_a_newer_agent_says_besides_is_passed_over() -> None:
    async with a_world() as world:
        await world.register()
        data = a_push().SerializeToString() + b"\x78\x01\x7d\x00\x00\x00\x00"
        (answer,) = await raw_push(world, data)
        assert profile_pb2.PushResponse.FromString(answer).refused == ""
        assert only(world.loop.fleet.pool("tiny")).tokens("decode") == 1200


@asynchronous
async def test_a_large_push_is_read_beside_the_loop_and_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.server.services.LIGHT", 10)
    threads = []
    read = wire.push

    def push(data: bytes) -> wire.Push:
        threads.append(threading.current_thread())
        return read(data)

    monkeypatch.setattr(wire, "push", push)

    async with a_world() as world:
        await world.register()
        assert await world.pushed(a_push(1), a_push(2)) == [(1, ""), (2, "")]
        assert only(world.loop.fleet.pool("tiny")).tokens("decode") == 2400

    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_of_a_large_push_pairs_are_left_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"transitions": bytes(range(64)), "coactivation": bytes(range(128))}
    data = a_push(1, [a_count(phase=1), a_count(**pairs)]).SerializeToString()
    small, found = intake.read_push(data)
    assert found == [{"transitions": b"", "coactivation": b""}, pairs]

    monkeypatch.setattr(intake, "LIGHT", len(data) - 1)
    large, found = intake.read_push(data)
    assert found == [{}, pairs]
    for name in pairs:
        small.counts[1].ClearField(name)
    assert large == small


@asynchronous
async def test_large_pushes_of_a_worker_and_those_in_vain_take_turns_by_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = []

    def delay_s(_: Spacing, of: str, now_s: float, size: int = 0) -> float:
        turns.append((of, size))
        return 0.0

    monkeypatch.setattr(Spacing, "delay_s", delay_s)
    large, vain = a_push(2, [a_count(), a_count(phase=2)]), COUNTS * 1000
    monkeypatch.setattr("controller.server.services.LIGHT", a_push(1).ByteSize())

    async with a_world() as world:
        await world.register()
        await world.pushed(a_push(1), large)
        await refusal(raw_push(world, vain))

    assert turns == [("tiny/engine-1/worker-0", large.ByteSize()), ("127.0.0.1", len(vain))]


@asynchronous
async def test_a_push_has_one_part_of_each_phase() -> None:
    async with a_world() as world:
        await world.register()
        twice = a_push(1, [a_count(), a_count()])
        steps = a_push(2)
        steps.window_s = 5.0
        for phase in (1, 2, 1):
            steps.steps.add(phase=phase, count=1, seconds=1.0)
        assert await world.pushed(twice, steps, a_push(3)) == [
            (1, "2 counts in a push: it has one of each phase at most"),
            (2, "3 steps in a push: it has one of each phase at most"),
            (3, ""),
        ]
        assert only(world.loop.fleet.pool("tiny")).tokens("decode") == 1200


LONG = "x" * 1001
TEXTS = {
    "a reason": ("Approve", ApproveRequest(plan_id="plan-1", reason=LONG), "reason"),
    "an id": ("Get", placement_pb2.GetRequest(plan_id=LONG), "plan_id"),
    "a key": ("Rollback", RollbackRequest(pool="tiny", idempotency_key=LONG), "idempotency_key"),
    "a pool": ("List", ListRequest(pool=LONG), "pool"),
    "an optimizer": ("Plan", placement_pb2.PlanRequest(pool="tiny", optimizer=LONG), "optimizer"),
}


@pytest.mark.parametrize(("method", "request_", "name"), TEXTS.values(), ids=TEXTS)
@asynchronous
async def test_texts_are_as_long_as_people_write(method: str, request_: Any, name: str) -> None:
    async with a_world() as world:
        told = await refusal(getattr(world.placement, method)(request_))
        assert told == (INVALID, f"{name} has 1,001 characters: give 1,000 at most")
        watched = world.placement.Watch(placement_pb2.WatchRequest(pool=LONG)).read()
        assert (await refusal(watched))[0] is INVALID


@asynchronous
async def test_a_reason_that_is_not_too_long_is_kept_whole() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        request = ApproveRequest(plan_id=plan.id, reason="ä" * 1000)
        assert (await world.placement.Approve(request)).plan.reason == "ä" * 1000


@asynchronous
async def test_a_request_beyond_its_methods_size_is_not_read() -> None:
    async with a_world() as world:
        said = fleet_pb2.RegisterRequest(condition="x" * intake.SMALL).SerializeToString()
        code, told = await refusal(raw(world, "FleetService/Register", said))
        assert code is INVALID
        assert told.endswith("/Register with 262,148 bytes: it takes 262,144 at most")
        code, told = await refusal(raw(world, "FleetService/Status", b"\x0a\x05tiny"))
        assert code is INVALID
        assert told.endswith("bytes that are no request: is it of this version's protos?")


@asynchronous
async def test_what_a_worker_says_of_its_troubles_is_cut_and_never_refused() -> None:
    async with a_world() as world:
        await world.register(condition="x" * 5000, refused="y" * 5000, refused_epoch=3)
        (member,) = world.loop.fleet.engine("tiny", "engine-1")
        found = member.registration
        assert (found.condition, found.refused) == (
            "x" * 1000,
            "y" * 1000,
        )


@asynchronous
async def test_of_very_many_pools_and_engines_an_answer_names_a_few() -> None:
    async with a_world() as world:
        for at in range(1500):
            await world.register(pool=f"pool-{at:04}")
        some = ", ".join(f"pool-{at:04}" for at in range(8)) + " and 1,492 more"
        told = await refusal(world.fleet.Status(StatusRequest(pool="other")))
        assert told == (NOT_FOUND, f"no pool 'other': there is {some}")
        told = await refusal(world.placement.Rollback(RollbackRequest(pool="y" * 900)))
        assert told == (NOT_FOUND, f"no pool '{'y' * 200}': there is {some}")
        found = await world.fleet.Status(StatusRequest())
        assert [pool.name for pool in found.pools] == [f"pool-{at:04}" for at in range(1500)]
        assert not found.conditions


@asynchronous
async def test_of_many_troubles_of_an_engine_a_few_are_told() -> None:
    async with a_world() as world:
        for rank in range(9):
            await world.register(worker=f"worker-{rank}", condition=f"condition {max(rank - 2, 0)}")
        ((engine,),) = [pool.engines for pool in (await world.fleet.Status(StatusRequest())).pools]
        assert list(engine.conditions) == [*(f"condition {at}" for at in range(4)), "and 3 more"]


@asynchronous
async def test_an_answer_is_no_larger_than_a_client_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "ANSWER", 300)

    async with a_world() as world:
        for pool in ("tiny", "small"):
            for at in range(20):
                await world.register(pool=pool, engine=f"engine-{at:02}")
        for _ in range(9):
            await world.proposed()
        assert len((await world.placement.List(ListRequest())).plans) < 9
        records = (await world.ledger.History(HistoryRequest())).records
        assert (records[0].id, len(records) < 9) == ("plan-8", True)  # superseded last
        found = await world.fleet.Status(StatusRequest())
        (pool,) = found.pools
        assert (pool.name, 1 < len(pool.engines) < 20) == ("small", True)
        assert list(found.conditions) == [
            f"status: only {len(pool.engines)} of 20 engines of small have room here",
            "status: only 1 of 2 pools have room here: ask for one by its name",
        ]
        explained = await world.ledger.Explain(ExplainRequest(id="plan-1"))
        assert [record.version for record in explained.records] == [2]
        assert len(explained.lines) == 3


@asynchronous
async def test_the_controller_answers_while_its_history_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()

    async with a_world() as world:
        records, begun = world.loop.ledger.records, threading.Event()
        newest = records.newest_of_each

        def slow(*args: Any, **kwargs: Any) -> Any:
            begun.set()
            go_on.wait(20)
            return newest(*args, **kwargs)

        monkeypatch.setattr(records, "newest_of_each", slow)
        await world.register(epoch=9, digest="sha256:ab")
        asked = world.ledger.History(HistoryRequest())
        while not begun.is_set():
            await world.fleet.Status(StatusRequest())
        assert await world.pushed(a_push()) == [(1, "")]
        go_on.set()
        assert [record.kind for record in (await asked).records] == ["acknowledgement"]


@asynchronous
async def test_reading_the_ledger_takes_a_fifth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_world() as world:
        clock, begun_s = world.loop.ledger.clock, list[float]()
        newest = world.loop.ledger.records.newest_of_each

        def slow(*args: Any, **kwargs: Any) -> Any:
            begun_s.append(clock.monotonic())
            while clock.monotonic() < begun_s[-1] + 0.05:
                pass
            return newest(*args, **kwargs)

        monkeypatch.setattr(world.loop.ledger.records, "newest_of_each", slow)
        for _ in range(3):
            await world.ledger.History(HistoryRequest())
        assert begun_s[1] - begun_s[0] >= 0.25
        assert begun_s[2] - begun_s[1] >= 0.25


@pytest.mark.parametrize("more", [b"0," * 20_000, b"0" * 500_000])
@asynchronous
async def test_a_plan_file_says_no_more_than_a_plan_of_the_pool(more: bytes) -> None:
    async with a_world() as world:
        await world.register()
        file = a_file()[:-3] + b', "x": [' + more + b"0]}"
        told = await refusal(world.placement.Propose(ProposeRequest(pool="tiny", file=file)))
        most = "one for 2 layers of 4 slots 403,840 at most, of 10,096 values: is it for this pool?"
        assert told == (INVALID, f"the proposed plan has {len(file):,} bytes, and {most}")
        assert (await world.proposed()).id == "plan-1"


@asynchronous
async def test_an_error_fits_into_a_header_whatever_it_quotes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise ModelError("\ud800" + "\U00010000" * 9000)

    async with a_world() as world:
        monkeypatch.setattr(world.loop.arbiter, "refuse_if_busy", fail)
        request = fleet_pb2.ScaleToRequest(pool="tiny")
        assert await refusal(world.fleet.ScaleTo(request)) == (INVALID, "?" + "\U00010000" * 499)
