"""Ledgers that earlier controllers wrote are gone on with; golden_ledger.py tells how they were
made."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.ledger import statements as sql
from controller.server import explain
from placer.files.plans import parse_plan
from placer.plan import Plan
from tests.controller.ledger import golden_ledger
from tests.controller.tiny_pool import GOAL, HOME, OTHER, POOL, World, only

ENDS = {"op-1": "succeeded", "op-2": "succeeded", "op-3": "succeeded", "op-5": "rolled back"}


@pytest.fixture(params=golden_ledger.KEPT, ids=lambda path: path.stem)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """The next controller, on a copy. No engine had committed anything of op-6."""
    shutil.copy(request.param, tmp_path / "placer.db")
    found = World([GOAL, GOAL], tmp_path / "placer.db", golden_ledger.ENDS_S)
    yield found
    found.disk.close()


def test_the_newest_of_a_thing_is_found_without_looking_through_its_versions(world: World) -> None:
    steps = world.disk._connection.execute(f"EXPLAIN QUERY PLAN {sql.LAST_OF}", ("", "")).fetchall()
    assert [step[-1] for step in steps] == [
        "SEARCH records USING COVERING INDEX records_by_id (kind=? AND id=?)"
    ]


def test_all_that_was_written_down_is_there(world: World) -> None:
    assert world.states() == {
        "plan-1": "superseded", "plan-2": "applied", "plan-3": "rolled back",
        "plan-4": "rolled back", "plan-5": "applying",
    }  # fmt: skip
    phases = {record.id: record.value.phase for record in world.disk.newest("operation")}
    assert phases == {**ENDS, "op-4": "refused", "op-6": "running"}
    maps = [world.ledger.placement(one.digest).digest for one in (HOME, GOAL, OTHER)]
    assert maps == [HOME.digest, GOAL.digest, OTHER.digest]
    file = parse_plan(world.arbiter.plans.file("plan-3").decode(), "plan-3")
    assert file.placement.digest == OTHER.digest
    assert len(world.disk.newest("acknowledgement")) == 2
    assert world.loop.conditions == {}


def test_the_traffic_and_the_workers_are_known(world: World) -> None:
    pool = world.fleet.pool(POOL)
    assert (list(pool.engines), only(pool).tokens("mixed")) == (["e0", "e1"], 3_000)


@pytest.mark.parametrize(
    ("id", "first", "last"),
    [
        ("plan-2", "plan-2 proposed: an operator's plan", "op-3 went back to it"),
        ("op-5", "op-5 (apply) running: go", "plan-4 rolled back: not now"),
    ],
)
def test_it_is_explained(world: World, id: str, first: str, last: str) -> None:
    told = explain.sentences(explain.story(world.disk, id, 1000))
    assert told[0].endswith(first)
    assert any(line.endswith(last) for line in told)


def test_the_operation_that_was_killed_ends_and_ids_go_on(world: World) -> None:
    world.clock.run(world.tick())
    assert world.stand_at(OTHER)
    states = world.states()
    assert (states["plan-5"], states["plan-2"]) == ("applied", "superseded")
    assert world.arbiter.propose(POOL, Plan(GOAL), "", "again").id == "plan-6"
    assert world.loop.conditions == {}


def test_it_is_rolled_back_to_where_that_controller_had_it(world: World) -> None:
    async def go_back() -> None:
        await world.tick()
        await world.arbiter.rollback(POOL, "", "back")
        await world.arbiter.settle()

    world.clock.run(go_back())
    assert (world.stand_at(GOAL), world.states()["plan-2"]) == (True, "applied")
