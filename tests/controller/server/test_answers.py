"""Who may call what, and what errors look like from outside."""

import asyncio
import errno
import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from controller.changes.arbiter import BusyError
from controller.fleet.workers import FleetError, UnknownError
from controller.ledger.ledger import Conflict, LedgerError, LedgerFull, Record, Unreadable
from controller.ledger.records import TooOld
from controller.pool_policies import PoolPolicies
from controller.ports import EngineLostError
from controller.server.answers import A_BUG, CODES
from controller.server.callers import ForbiddenError
from controller.server.security import Listening, SecurityError
from controller.server.serve import SERVICES, start
from controller.server.strangers import Spacing
from placer.channel import Settings, open_aio_channel
from placer.errors import PlacerError
from placer.v1 import fleet_pb2, placement_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from tests.controller.server.tiny_server import (
    Setting,
    World,
    a_push,
    a_registration,
    a_world,
    refusal,
    until,
)
from tests.controller.server.tiny_service import AGENT, OPERATOR, TOKENS, WRONG, write
from tests.controller.tiny_pool import asynchronous

Code = grpc.StatusCode

OPERATORS = [
    ("placement", method)
    for method in ("Plan", "Propose", "Approve", "Apply", "Rollback", "Get", "List")
] + [("fleet", method) for method in ("Status", "ScaleTo", "Operations")]
LEDGER = [("ledger", "History"), ("ledger", "Explain")]


async def code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


def unary(world: World, service: str, method: str) -> Any:
    messages = placement_pb2 if service == "placement" else fleet_pb2
    request = getattr(messages, f"{method}Request")()
    return getattr(getattr(world, service), method)(request)


async def health(channel: Any, service: str = "") -> Any:
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def services(channel: Any) -> list[str]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    async for answer in stub.ServerReflectionInfo(iter([request])):
        return [one.name for one in answer.list_services_response.service]
    return []


def with_token(tmp_path: Path, token: str) -> Setting:
    return Setting(tokens=write(tmp_path / "tokens.yaml", TOKENS), token=token)


@asynchronous
async def test_an_agent_may_register_push_and_watch_and_nothing_else(tmp_path: Path) -> None:
    async with a_world(with_token(tmp_path, AGENT)) as world:
        assert await code(world.register()) is Code.OK
        assert await world.pushed(a_push()) == [(1, "")]
        own = placement_pb2.WatchRequest(pool="tiny", engine="engine-1")
        stream = world.placement.Watch(own)
        await until(lambda: world.offers._changed._waiters)
        stream.cancel()
        for service, method in [*OPERATORS, *LEDGER]:
            found, told = await refusal(unary(world, service, method))
            assert found is Code.PERMISSION_DENIED
            assert f"/{method} is for operators" in told
            assert "and this is an agent's token: use an operator's" in told
        assert await health(world.channel) == health_pb2.HealthCheckResponse.SERVING
        assert set(SERVICES) < set(await services(world.channel))


@asynchronous
async def test_an_operator_may_do_everything(tmp_path: Path) -> None:
    async with a_world(with_token(tmp_path, OPERATOR)) as world:
        await world.traffic()
        for service, method in [*OPERATORS, *LEDGER]:
            denied = (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)
            assert await code(unary(world, service, method)) not in denied, method
        assert await health(world.channel) == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("token", ["", WRONG])
@asynchronous
async def test_who_shows_no_known_token_is_nobody(tmp_path: Path, token: str) -> None:
    async with a_world(with_token(tmp_path, token)) as world:
        for call in (
            world.register(),
            world.pushed(a_push()),
            unary(world, "fleet", "Status"),
            health(world.channel),
            services(world.channel),
        ):
            found, told = await refusal(call)
            assert found is Code.UNAUTHENTICATED
            assert "set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's" in told


@asynchronous
async def test_health_and_reflection_know_every_service() -> None:
    async with a_world() as world:
        for name in ("", *SERVICES):
            assert await health(world.channel, name) == health_pb2.HealthCheckResponse.SERVING
        assert (await refusal(health(world.channel, "placer.v1.Nothing")))[0] is Code.NOT_FOUND
        assert set(await services(world.channel)) == {
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
            "placer.v1.FleetService",
            "placer.v1.LedgerService",
            "placer.v1.PlacementService",
            "placer.v1.PolicyService",
            "placer.v1.ProfileService",
        }


RAISED: dict[type[PlacerError], tuple[PlacerError, str]] = {
    ForbiddenError: (ForbiddenError("it is an agent's: use another"), "PERMISSION_DENIED"),
    UnknownError: (UnknownError("no such: look"), "NOT_FOUND"),
    BusyError: (BusyError("op-1 is at work: wait"), "FAILED_PRECONDITION"),
    FleetError: (FleetError("not now: wait"), "FAILED_PRECONDITION"),
    Conflict: (Conflict(Record("plan", "plan-1", 2, 0.0, "", {}), 3), "ABORTED"),
    LedgerFull: (LedgerFull("the disk is full: make room"), "RESOURCE_EXHAUSTED"),
    TooOld: (TooOld("too old: watch again from 0"), "OUT_OF_RANGE"),
    Unreadable: (Unreadable("plan plan-1 is not JSON: do without it"), "DATA_LOSS"),
    LedgerError: (LedgerError("the ledger is broken: restore it"), "UNAVAILABLE"),
    EngineLostError: (EngineLostError("it is gone: start it"), "UNAVAILABLE"),
    PlacerError: (PlacerError("it is wrong:\nright it"), "INVALID_ARGUMENT"),
}


def test_every_kind_of_error_is_raised_below() -> None:
    assert list(RAISED) == [kind for kind, _ in CODES]


@pytest.mark.parametrize(("error", "name"), RAISED.values(), ids=[kind.__name__ for kind in RAISED])
@asynchronous
async def test_an_error_has_its_code_and_its_remedy_on_one_line(
    error: PlacerError, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise error

    async with a_world() as world:
        monkeypatch.setattr(world.loop.arbiter, "refuse_if_busy", fail)
        monkeypatch.setattr(world.loop.ledger, "watch", fail)
        expected = (Code[name], " ".join(str(error).split()))
        request = fleet_pb2.ScaleToRequest(pool="tiny")
        assert await refusal(world.fleet.ScaleTo(request)) == expected
        stream = world.placement.Watch(placement_pb2.WatchRequest())
        assert await refusal(stream.read()) == expected


@asynchronous
async def test_what_nobody_expected_is_told_to_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise KeyError("a secret of the controller")

    caplog.set_level(logging.ERROR, logger="placer.controller")
    async with a_world() as world:
        await world.register()
        for name in ("push", "register", "pool"):
            monkeypatch.setattr(world.loop.fleet, name, fail)
        monkeypatch.setattr(world.loop.ledger, "watch", fail)
        for call in (
            world.pushed(a_push()),
            world.fleet.Register(a_registration()),
            world.fleet.Status(fleet_pb2.StatusRequest(pool="tiny")),
            world.placement.Watch(placement_pb2.WatchRequest()).read(),
        ):
            assert await refusal(call) == (Code.INTERNAL, A_BUG)

    told = [record for record in caplog.records if record.name == "placer.controller"]
    assert sorted(record.getMessage() for record in told) == [
        f"placer: {method} failed" for method in ("Push", "Register", "Status", "Watch")
    ]
    assert all("a secret" in str(record.exc_info) for record in told)


@asynchronous
async def test_a_full_disk_refuses_what_must_be_written_and_hears_agents_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> Any:
        raise LedgerFull(f"no space left ({errno.ENOSPC}): make room")

    async with a_world() as world:
        await world.traffic()
        with monkeypatch.context() as patch:
            patch.setattr(world.loop.ledger.records, "put_all", full)
            assert (await world.register(epoch=9, digest="sha256:ab")).sequence == 1
            assert await world.pushed(a_push(2)) == [(2, "")]
            assert (await refusal(world.proposed()))[0] is Code.RESOURCE_EXHAUSTED
        assert (await world.proposed()).id == "plan-1"


@asynchronous
async def test_calls_of_methods_and_messages_that_are_none_are_refused() -> None:
    async with a_world() as world:
        nothing = world.channel.unary_unary("/placer.v1.FleetService/Nothing")(b"")
        assert (await refusal(nothing))[0] is Code.UNIMPLEMENTED
        garbage = world.channel.unary_unary("/placer.v1.FleetService/Register")(b"\xff\xff")
        assert (await code(garbage)) in (Code.INTERNAL, Code.UNKNOWN, Code.INVALID_ARGUMENT)
        empty = world.fleet.Register(fleet_pb2.RegisterRequest())
        assert (await refusal(empty))[0] is Code.INVALID_ARGUMENT


@asynchronous
async def test_a_second_controller_on_the_port_is_a_mistake_and_names_it() -> None:
    async with a_world() as world:
        policies = PoolPolicies(world.loop.config, world.loop.ledger)
        with pytest.raises(SecurityError, match="is the port taken"):
            await start(world.loop, world.offers, policies, Listening(world.address))


@asynchronous
async def test_many_connections_at_once_are_answered() -> None:
    async with a_world() as world:

        async def one(number: int) -> Any:
            own = [("grpc.use_local_subchannel_pool", 1)]
            async with open_aio_channel(world.address, Settings(), own) as channel:
                return await FleetServiceStub(channel).Register(
                    a_registration(engine=f"engine-{number}")
                )

        await asyncio.gather(*(one(number) for number in range(50)))
        assert len(world.loop.fleet.pool("tiny").engines) == 50


@asynchronous
async def test_what_cannot_be_answered_waits_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Spacing, "delay_s", lambda *_: 3_600.0)
    async with a_world() as world:
        empty = asyncio.ensure_future(world.fleet.Register(fleet_pb2.RegisterRequest()))
        await world.traffic()
        assert not empty.done()
        empty.cancel()
