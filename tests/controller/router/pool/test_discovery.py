"""Engines are found through a controller, and stay when it goes."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from controller.router.pool import watching
from controller.router.pool.discovery import Discovery
from controller.router.pool.doors import Doors, Named
from controller.router.pool.watching import Watch
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


def engine(name: str, *doors: tuple[str, list[int]]) -> fleet_pb2.Engine:
    return fleet_pb2.Engine(
        name=name, doors=[fleet_pb2.Door(address=url, ranks=ranks) for url, ranks in doors]
    )


@pytest.fixture
def discovery(monkeypatch: pytest.MonkeyPatch) -> Discovery:
    return Discovery("127.0.0.1:1", "chat", SystemClock())


def answering(discovery: Discovery, monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    monkeypatch.setattr(discovery._controller, "ask", lambda *_: answer)


def test_doors_are_what_workers_registered(
    discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = status(
        engine("blue", ("http://a:8000/", [0, 1])),
        engine("green", ("http://b:8000", [0]), ("http://c:8000", [1]), ("ftp://evil", [2])),
        engine("silent"),
    )
    answering(discovery, monkeypatch, told)
    named, maps, control = discovery.ask()
    assert control is None
    assert maps == {"blue": "", "green": "", "silent": ""}
    assert named == {
        "http://a:8000": Named("blue", (0, 1)),
        "http://b:8000": Named("green", (0,)),
        "http://c:8000": Named("green", (1,)),
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
        told: list[Mapping[str, Named]] = []
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
        doors = Doors(lambda: None, lambda: None)
        watch = Watch(doors, SystemClock(), [])
        watch.name({first.url: Named("one"), second.url: Named("two")})
        await until(lambda: len(doors.seats) == 2)
        watch.name({first.url: Named("one")})
        assert len(doors.seats) == 2
        monkeypatch.setattr(watching, "FORGOTTEN_S", 0.0)
        watch.name({first.url: Named("one")})
        assert {place.engine for place in doors.seats} == {"one"}
        watch.close()
        assert not doors.all


@run
async def test_an_address_that_cannot_be_is_passed_over() -> None:
    doors = Doors(lambda: None, lambda: None)
    watch = Watch(doors, SystemClock(), [])
    watch.name({"ftp://a": Named("one")})
    assert not doors.all
    watch.close()


@run
async def test_a_front_finds_its_engines_through_a_real_controller_and_outlives_it() -> None:
    one = Engine()
    async with engines(one):
        async with a_world() as world:
            await world.register(api=one.url)
            found = Discovery(world.address, "tiny", SystemClock())
            told, *_ = await asyncio.get_running_loop().run_in_executor(None, found.ask)
            assert told == {one.url: Named("engine-1", (0,))}
            found.close()
            discovery = Discovery(world.address, "tiny", SystemClock())
            running = fronted(discovery=discovery, waits=False)
            here = await running.__aenter__()
            await until(lambda: here.front.desk.doors.seats)
            assert (await ask(here.port, COMPLETIONS, completion())).status == 200
        await until(lambda: discovery._condition)  # the controller is gone
        assert (await ask(here.port, COMPLETIONS, completion())).status == 200
        await running.__aexit__(None, None, None)
