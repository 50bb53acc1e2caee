"""What a front does with tables: they are for engines of their map, but for a control group."""

import numpy as np

from controller.router.pool.table_watch import NOTHING, KnownTables
from controller.router.scheduling.lookup import Lookup
from controller.router.shared.settings import Limits
from placer.cost.requests import Costs
from placer.marks import Mark, mark_of
from placer.tables import Vocabulary
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    Running,
    ask,
    completion,
    fronted,
    run,
)

MAP, OTHER = "sha256:map", "sha256:other"
TABLES = Lookup.of(Vocabulary(np.arange(9), np.arange(9)), [np.full((10, 1), 0.5)])
KNOWN = KnownTables(TABLES, MAP, Costs(1e-6, 1e-6, 1e-6))


def tables_of(here: Running) -> dict[str, int | None]:
    return {one.name: one.table for one in here.scheduler.engines}


@run
async def test_tables_are_for_engines_of_their_map_alone() -> None:
    blue, green = Engine(), Engine()
    async with engines(blue, green), fronted(blue, green) as here:
        router = here.front.router
        assert tables_of(here) == {"engine-1": None, "engine-2": None}
        router.know({"engine-1": MAP, "engine-2": OTHER}, KNOWN)
        assert here.scheduler.tables is TABLES
        assert tables_of(here) == {"engine-1": 0, "engine-2": None}
        router.know({"engine-1": OTHER, "engine-2": MAP}, None)  # experts moved
        assert tables_of(here) == {"engine-1": None, "engine-2": 0}
        router.know({"engine-1": OTHER, "engine-2": MAP}, NOTHING)  # they do not pay any more
        assert tables_of(here) == {"engine-1": None, "engine-2": None}
        assert len(here.scheduler.tables.tables.values) == 1


@run
async def test_a_share_of_requests_goes_by_load_and_all_say_how() -> None:
    one = Engine()
    async with engines(one), fronted(one, limits=Limits(control=0.25)) as here:
        await ask(here.port, COMPLETIONS, completion())
        here.front.router.know({"engine-1": MAP}, KNOWN)
        for _ in range(8):
            await ask(here.port, COMPLETIONS, completion(), {"X-Request-Id": "client's own"})
    ids = [seen.headers.get("x-request-id", "") for seen in one.asked]
    assert [mark_of(id) for id in ids] == [Mark.NONE, *2 * [*3 * [Mark.TABLES], Mark.LOAD]]
    assert all(id.startswith("client's own-") for id in ids[1:])
    known = [request.tokens is not None for request in here.scheduler.requests]
    assert known == [True, *2 * [True, True, True, False]]


@run
async def test_a_client_does_not_say_how_its_rank_was_chosen() -> None:
    one = Engine()
    async with engines(one), fronted(one) as here:
        for id in ("own-placert", "own-placerl", "own"):
            await ask(here.port, COMPLETIONS, completion(), {"X-Request-Id": id})
        here.front.router.know({"engine-1": MAP}, KNOWN)
        await ask(here.port, COMPLETIONS, completion(), {"X-Request-Id": "own-placerl"})
    ids = [seen.headers.get("x-request-id", "") for seen in one.asked]
    assert ids[:3] == ["", "", "own"]
    assert mark_of(ids[3]) is Mark.TABLES


@run
async def test_the_pools_own_share_comes_before_the_fronts() -> None:
    one = Engine()
    async with engines(one), fronted(one, limits=Limits(control=0.25)) as here:
        router = here.front.router
        router.know({"engine-1": MAP}, KNOWN, 0.5)
        assert [router.mark() for _ in range(4)] == 2 * [Mark.TABLES, Mark.LOAD]
        router.know({"engine-1": MAP}, None, 0.0)
        assert [router.mark() for _ in range(4)] == 4 * [Mark.TABLES]
        router.know({"engine-1": MAP}, None)  # the policy says nothing of it any more
        assert [router.mark() for _ in range(4)] == [*3 * [Mark.TABLES], Mark.LOAD]
