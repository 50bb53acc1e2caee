"""Tables come by a watch: new ones, that there are none, and from controllers of before."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from controller.fleet.homing import Homing
from controller.router.pool import table_watch
from controller.router.pool.discovery import Discovery
from controller.router.pool.table_watch import NOTHING, KnownTables, TableWatch
from controller.server import given_tables
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.v1.placement_pb2 import TablesRequest, TablesResponse
from tests.builders import a_placement
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import fronted, run
from tests.controller.server.test_tables import STANDS
from tests.controller.server.test_traces import WANTED, a_sampled_push
from tests.controller.server.tiny_server import SWAPPED, Setting, World, a_world, until


@asynccontextmanager
async def sampled_of(engine: Engine) -> AsyncIterator[World]:
    async with a_world(Setting(replace(WANTED, least_tokens=1))) as world:
        said = {"vocabulary": "sha256:theirs"}
        await world.register(api=engine.url, digest=STANDS, changes=said)
        assert await world.pushed(a_sampled_push()) == [(1, "")]
        yield world


@contextmanager
def told(
    *streams: Sequence[TablesResponse | Exception], vocabulary: str = ""
) -> Iterator[Callable[[], KnownTables | None]]:
    """What is known once a controller has answered with these, stream after stream."""
    left = list(streams)

    def read(*_: Any) -> Iterator[TablesResponse]:
        for one in left.pop(0) if left else [PlacerError("no controller answers")]:
            if isinstance(one, Exception):
                raise one
            yield one

    stub: Any = SimpleNamespace(read=read, placement=SimpleNamespace(Tables=None))
    found = TableWatch(lambda: stub, "tiny", SystemClock(), vocabulary)
    found.begin()
    yield found.newest
    found.close()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (table_watch, "BREATH_S"), (table_watch, "AGAIN_S"),
        (given_tables, "LOOK_S"), (given_tables, "AGAIN_S"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr("controller.router.pool.discovery.EVERY_S", 0.01)


@run
async def test_a_front_follows_what_the_controller_tells_and_keeps_it_when_that_is_gone() -> None:
    one = Engine()
    async with engines(one):
        async with sampled_of(one) as world:
            discovery = Discovery(world.address, "tiny", SystemClock())
            running = fronted(discovery=discovery, waits=False)
            router = (await running.__aenter__()).front.router
            await until(lambda: router._plan == STANDS)
            for engine in world.engines.engines.values():
                engine.placement = a_placement(SWAPPED)
            await until(lambda: router._plan == a_placement(SWAPPED).digest)
            world.loop.homings.of["tiny"] = Homing({}, "it does not pay", pays=False)
            await until(lambda: not router._plan)
            world.loop.homings.of.clear()
            await until(lambda: router._plan)
        await until(lambda: discovery._condition)  # the controller is gone
        assert router._plan == a_placement(SWAPPED).digest
        await running.__aexit__(None, None, None)


@run
async def test_a_controller_of_before_ends_the_stream_with_the_file() -> None:
    one = Engine()
    async with engines(one), sampled_of(one) as world:
        once = world.placement.Tables(TablesRequest(pool="tiny"))
        answers = [TablesResponse(part=one.part, seconds=one.seconds) async for one in once]
    with told(answers) as newest:
        found = await until(newest)
    assert found.plan == STANDS


@run
async def test_a_stream_that_breaks_changes_nothing_and_a_reason_ends_what_was_known() -> None:
    broken, bad = PlacerError("no controller answers"), TablesResponse(part=b"?", last=True)
    with told([broken], [bad], [TablesResponse(reason="it does not pay")]) as newest:
        assert await until(newest) is NOTHING  # the first that came of all that


@run
async def test_tables_of_another_vocabulary_than_prompts_are_tokenized_with_are_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one = Engine()
    async with engines(one), sampled_of(one) as world:
        once = [answer async for answer in world.placement.Tables(TablesRequest(pool="tiny"))]
    with told(once, vocabulary="sha256:ours") as newest:
        assert await until(newest) is NOTHING
    assert "for vocabulary sha256:theirs, and this is sha256:ours" in caplog.text
    with told(once, vocabulary="sha256:theirs") as newest:
        assert (await until(newest)).plan == STANDS
