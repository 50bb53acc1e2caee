"""Whatever record of a ledger is damaged, the controller starts, names it, and goes on without."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from controller.fleet.workers import FleetError
from controller.ledger.ledger import Unreadable
from controller.server import explain
from tests.controller.ledger import golden_ledger
from tests.controller.tiny_pool import (
    GOAL,
    HOME,
    OTHER,
    POOL,
    SKEWED,
    TICK_S,
    KilledError,
    World,
    a_registration,
    decided,
    in_virtual_time,
)

with closing(sqlite3.connect(f"file:{golden_ledger.PATH}?mode=ro&immutable=1", uri=True)) as _file:
    # The newest of each thing in a ledger that has some of every kind.
    THINGS: list[tuple[str, str]] = _file.execute(
        "SELECT DISTINCT kind, id FROM records ORDER BY number"
    ).fetchall()
DAMAGES = {
    "cut short": "body = substr(body, 1, length(body) / 2)",
    "another form": "body = '{}'",
    "no text": "body = x'ff', reason = x'ff'",
    "no time": "at_s = 'noon'",
}
NEEDED_BY_NOBODY = ("decision", "acknowledgement")  # whatever they say, it is only told


def damage(ledger: sqlite3.Connection | World, change: str, kind: str, id: str = "%") -> None:
    """The newest version, past the controller."""
    connection = ledger.disk._connection if isinstance(ledger, World) else ledger
    where = "kind = ? AND id LIKE ? ORDER BY version DESC LIMIT 1"
    query = f"UPDATE records SET {change} WHERE number = (SELECT number FROM records WHERE {where})"
    assert connection.execute(query, (kind, id)).rowcount == 1


def named(world: World) -> list[str]:
    return [f"{one.kind} {one.id}" for one in world.disk.left_out()]


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
@in_virtual_time
async def test_whatever_is_damaged_the_controller_starts_names_it_and_works(
    tmp_path: Path, change: str
) -> None:
    """Each thing of golden_ledger.py's in turn, in whose ledger op-6 is at work."""
    for at, (kind, id) in enumerate(THINGS):
        path = tmp_path / f"{at}.db"
        shutil.copy(golden_ledger.PATH, path)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            damage(connection, change, kind, id)
        world = World([GOAL, GOAL], path, golden_ledger.ENDS_S)
        is_missed = change != DAMAGES["another form"] or kind not in NEEDED_BY_NOBODY
        assert (named(world), list(world.loop.told())) == ([f"{kind} {id}"] * is_missed,) * 2
        for _ in range(2):
            world.count(SKEWED)
            await world.tick(TICK_S)
        assert world.loop.conditions == {}, (kind, id)
        assert world.arbiter.running is None
        assert decided(world)[0] in ("hold", "wait", "propose")
        world.disk.close()


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
@in_virtual_time
async def test_nothing_of_a_ledger_is_needed_to_go_on(tmp_path: Path, change: str) -> None:
    shutil.copy(golden_ledger.PATH, tmp_path / "placer.db")
    with closing(sqlite3.connect(tmp_path / "placer.db", isolation_level=None)) as connection:
        connection.execute(f"UPDATE records SET {change}")
    world = World([GOAL, GOAL], tmp_path / "placer.db", golden_ledger.ENDS_S)
    is_formless = change == DAMAGES["another form"]
    left = [kind for kind, _ in THINGS if is_formless and kind in NEEDED_BY_NOBODY]
    assert len(named(world)) == len(THINGS) - len(left)
    assert {record.kind for record in world.disk.history()} == set(left)
    await world.apply(OTHER)
    await world.arbiter.settle()
    assert (world.stand_at(OTHER), world.states()) == (True, {"plan-6": "applied"})
    world.disk.close()


UPWARDS = ["version = 1 << 52", "version = (1 << 52) - 2", "number = ~(1 << 63)", "number = 9999"]


@pytest.mark.parametrize("change", UPWARDS)
@in_virtual_time
async def test_an_operation_goes_on_whichever_row_of_it_says_too_large_a_number(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    for version in (1, 2, 3, 4):  # of op-6, which is at work
        path = tmp_path / f"{version}.db"
        shutil.copy(golden_ledger.PATH, path)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            row = "kind = 'operation' AND id = 'op-6' AND version = ?"
            connection.execute(f"UPDATE records SET {change} WHERE {row}", (version,))
        world = World([GOAL, GOAL], path, golden_ledger.ENDS_S)
        await world.tick(TICK_S)
        assert (world.arbiter.running, world.loop.conditions) == (None, {})
        await world.apply(OTHER)
        await world.arbiter.settle()
        assert world.stand_at(OTHER)
        world.disk.close()
    assert caplog.text.count("was never written") == 4 * change.startswith("number")


@in_virtual_time
async def test_only_who_needs_a_plan_that_cannot_be_read_is_refused() -> None:
    world = World()
    await world.apply(GOAL)
    await world.arbiter.settle()
    damage(world, "body = ''", "plan")
    with pytest.raises(Unreadable, match="plan plan-1 is not JSON"):
        world.arbiter.plans.approve("plan-1", 0, "go")
    assert explain.sentences(explain.story(world.disk, "op-1", 1000))[0].endswith("running: go")
    await world.apply(OTHER)
    await world.arbiter.settle()
    ended = {"plan-1": "superseded", "plan-2": "applied"}  # the controller had read it before
    assert (world.stand_at(OTHER), world.states()) == (True, ended)
    await world.arbiter.rollback(POOL, "", "back")
    await world.arbiter.settle()
    assert world.stand_at(GOAL)


@in_virtual_time
async def test_what_a_plan_that_cannot_be_read_at_all_was_is_refused() -> None:
    world = World()
    await world.apply(GOAL)
    await world.arbiter.settle()
    world.disk._connection.execute("UPDATE records SET body = '' WHERE kind = 'plan'")
    with pytest.raises(Unreadable, match="plan plan-1 is not JSON"):
        explain.story(world.disk, "plan-1", 1000)


@in_virtual_time
async def test_the_way_back_is_not_guessed_when_the_last_change_cannot_be_read() -> None:
    """The one before it would lead elsewhere."""
    world = World()
    for placement in (GOAL, OTHER):
        await world.apply(placement)
        await world.arbiter.settle()
    damage(world, "body = ''", "operation", "op-2")
    with pytest.raises(Unreadable, match="op-2 cannot be read, so that it is not known where chat"):
        await world.arbiter.rollback(POOL, "", "back")
    assert (world.stand_at(OTHER), len(world.disk.newest("operation"))) == (True, 1)
    await world.apply(HOME)
    await world.arbiter.settle()
    await world.arbiter.rollback(POOL, "", "back")
    await world.arbiter.settle()
    assert world.stand_at(OTHER)


@in_virtual_time
async def test_a_plan_whose_operation_cannot_be_read_is_halted_and_others_go_on() -> None:
    world = World()
    world.engines.moods = {4: "done, killed"}
    await world.apply(GOAL)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    damage(world, "body = ''", "operation")
    world.start()
    await world.tick()
    assert (world.states(), named(world)) == ({"plan-1": "halted"}, ["operation op-1"])
    await world.apply(GOAL)
    await world.arbiter.settle()
    assert (world.stand_at(GOAL), world.states()["plan-2"]) == (True, "applied")


@pytest.mark.parametrize("change", ["blob = NULL", "blob = x'00'", 'blob = \'{"e0": ""}\''])
@in_virtual_time
async def test_an_operation_that_cannot_say_where_its_engines_stood_is_halted(change: str) -> None:
    world = World()
    world.engines.moods = {4: "done, killed"}
    await world.apply(GOAL)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    world.disk._connection.execute(f"UPDATE records SET {change} WHERE kind = 'operation'")
    world.start()
    await world.tick()
    assert (world.states(), world.arbiter.running) == ({"plan-1": "halted"}, None)
    with pytest.raises(Unreadable, match=r"operation op-1 .*: do without it, or put a backup"):
        await world.arbiter.rollback(POOL, "", "back")
    assert named(world) == ["operation op-1"]
    await world.apply(GOAL)
    await world.arbiter.settle()
    assert (world.stand_at(GOAL), world.states()["plan-2"]) == (True, "applied")


@pytest.mark.parametrize("change", ["body = '{}'", "blob = x'00'", "blob = zeroblob(32)"])
@in_virtual_time
async def test_an_operation_whose_goal_cannot_be_read_goes_back(change: str) -> None:
    world = World()
    world.engines.moods = {9: "done, killed"}
    await world.apply(GOAL)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    damage(world, change, "placement", GOAL.digest)
    world.start()
    await world.tick()
    assert (world.states(), world.stand_at(HOME)) == ({"plan-1": "rolled back"}, True)
    assert named(world) == [f"placement {GOAL.digest}"]
    why = world.arbiter.history.get("op-1").value.why
    assert "placement sha256:" in why
    await world.apply(GOAL)  # which keeps it anew
    await world.arbiter.settle()
    assert (world.stand_at(GOAL), named(world)) == (True, [])


@in_virtual_time
async def test_an_approved_plan_whose_map_cannot_be_read_makes_room_for_another() -> None:
    world = World(confirmations=1)
    world.count(SKEWED)
    await world.tick()
    world.arbiter.plans.approve("plan-1", 0, "go")
    damage(world, "blob = x'00'", "placement", world.arbiter.plans.get("plan-1").value.digest)
    await world.tick(TICK_S)
    assert world.states() == {"plan-1": "superseded"}
    assert (
        "plan-1 cannot be applied: the ledger in memory: placement"
        in (world.loop.conditions[f"{POOL}: approved plans"])
    )
    world.count(SKEWED)
    await world.tick(TICK_S)
    assert (world.states()["plan-2"], world.loop.conditions) == ("proposed", {})
    with pytest.raises(FleetError, match="plan-1 is superseded"):
        world.arbiter.plans.approve("plan-1", 0, "go")


@in_virtual_time
async def test_that_an_operation_should_go_back_is_heard_from_a_broken_record_too() -> None:
    world = World()
    world.engines.moods = {4: "done, killed"}
    await world.apply(GOAL)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    world.arbiter.runner.abort(
        world.arbiter.history.get("op-1"), "an operator wants it back", "key"
    )
    damage(world, "body = ''", "abort")
    world.start()
    await world.tick()
    assert (world.states(), world.stand_at(HOME)) == ({"plan-1": "rolled back"}, True)


def test_what_a_worker_says_is_written_down_over_what_cannot_be_read() -> None:
    world = World()
    registration = a_registration(epoch=1, digest=GOAL.digest)
    world.loop.acknowledge(registration)
    damage(world, "body = ''", "acknowledgement")
    world.start()
    assert named(world) == ["acknowledgement chat/e0/w0"]
    world.loop.acknowledge(registration)
    assert (world.loop.told(), world.disk.version("acknowledgement", "chat/e0/w0")) == ({}, 2)
