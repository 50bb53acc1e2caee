"""Engines are found through a controller, and stay when it goes."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from controller.router.pool import health
from controller.router.pool.discovery import Discovery
from controller.router.pool.endpoints import Endpoints, Listed
from controller.router.pool.health import HealthChecks
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.v1 import fleet_pb2
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    ask,
    completion,
    fronted,
    run,
    until,
)
from tests.controller.server.tiny_server import a_world


def status(*them: fleet_pb2.Engine) -> fleet_pb2.StatusResponse:
    return fleet_pb2.StatusResponse(pools=[fleet_pb2.Pool(name="chat", engines=them)])


def engine(name: str, *endpoints: tuple[str, list[int]]) -> fleet_pb2.Engine:
    return fleet_pb2.Engine(
        name=name,
        endpoints=[fleet_pb2.Endpoint(address=url, ranks=ranks) for url, ranks in endpoints],
    )


@pytest.fixture
def discovery(monkeypatch: pytest.MonkeyPatch) -> Discovery:
    return Discovery("127.0.0.1:1", "chat", SystemClock())


def answering(discovery: Discovery, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(discovery._controller, "ask", lambda *_: answer)


def test_endpoints_are_what_workers_registered(
    discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = status(
        engine("blue", ("http://a:8000/", [0, 1])),
        engine("green", ("http://b:8000", [0]), ("http://c:8000", [1]), ("ftp://evil", [2])),
        engine("silent"),
    )
    answering(discovery, monkeypatch, told)
    listed, maps, control = discovery.ask()
    assert control is None
    assert maps == {"blue": "", "green": "", "silent": ""}
    assert listed == {
        "http://a:8000": Listed("blue", (0, 1)),
        "http://b:8000": Listed("green", (0,)),
        "http://c:8000": Listed("green", (1,)),
    }


def test_the_share_of_the_control_group_is_the_pools(
    discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = status(engine("blue", ("http://a:8000", [0])))
    told.pools[0].control = 0.0
    answering(discovery, monkeypatch, told)
    assert discovery.ask()[2] == 0.0


def test_engines_that_say_no_address_are_told_how_to(
    discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(discovery, monkeypatch, status(engine("silent")))
    with pytest.raises(PlacerError, match="set PLACER_API"):
        discovery.ask()


@run
async def test_while_the_controller_is_away_all_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Engine()
    async with engines(one), fronted(one) as here:
        found = Discovery("127.0.0.1:1", "chat", SystemClock())  # where nobody listens
        told: list[Mapping[str, Listed]] = []
        task = asyncio.create_task(found.run(told.append, lambda *_: None))
        await until(lambda: found._condition)
        assert "no controller answers" in found._condition
        assert not told
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200
        task.cancel()
        found.close()


@run
async def test_an_engine_that_comes_is_used_and_one_that_goes_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A controller that is started again does not know all of them at once."""
    first, second = Engine(), Engine()
    async with engines(first, second):
        endpoints = Endpoints(lambda: None, lambda: None)
        checks = HealthChecks(endpoints, SystemClock(), [])
        checks.follow({first.url: Listed("one"), second.url: Listed("two")})
        await until(lambda: len(endpoints.backends) == 2)
        checks.follow({first.url: Listed("one")})
        assert len(endpoints.backends) == 2
        monkeypatch.setattr(health, "FORGOTTEN_S", 0.0)
        checks.follow({first.url: Listed("one")})
        assert {place.engine for place in endpoints.backends} == {"one"}
        checks.close()
        assert not endpoints.all


@run
async def test_an_address_that_cannot_be_is_passed_over() -> None:
    endpoints = Endpoints(lambda: None, lambda: None)
    checks = HealthChecks(endpoints, SystemClock(), [])
    checks.follow({"ftp://a": Listed("one")})
    assert not endpoints.all
    checks.close()


@run
async def test_a_front_finds_its_engines_through_a_real_controller_and_outlives_it() -> None:
    one = Engine()
    async with engines(one):
        async with a_world() as world:
            await world.register(api=one.url)
            found = Discovery(world.address, "tiny", SystemClock())
            told, *_ = await asyncio.get_running_loop().run_in_executor(None, found.ask)
            assert told == {one.url: Listed("engine-1", (0,))}
            found.close()
            discovery = Discovery(world.address, "tiny", SystemClock())
            running = fronted(discovery=discovery, waits=False)
            here = await running.__aenter__()
            await until(lambda: here.front.router.endpoints.backends)
            assert (await ask(here.port, COMPLETIONS, completion())).status == 200
        await until(lambda: discovery._condition)  # the controller is gone
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200
        await running.__aexit__(None, None, None)
