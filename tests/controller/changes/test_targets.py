"""Where an operation's engines stood before is written once, and is there as long as it is."""

import pytest

from controller.changes.targets import pack, targets_of
from controller.ledger import ledger
from tests.controller.tiny_pool import (
    BEGIN_S,
    GOAL,
    HOME,
    OTHER,
    POOL,
    KilledError,
    World,
    alike,
    in_virtual_time,
)


def as_each_step_wrote_them(world: World) -> None:
    """The operation, in the form of controllers before."""
    kept = pack(targets_of(world.disk, world.arbiter.history.get("op-1"))).decode()
    world.disk._connection.execute(
        "UPDATE records SET blob = NULL, body = json_set(json_remove(body, '$.engine', "
        "'$.engines'), '$.rollback_targets', json(?)) WHERE kind = 'operation'",
        (kept,),
    )


async def killed(number: int) -> World:
    """Two engines that stand differently; the controller is killed at the n-th command."""
    world = World([HOME, OTHER])
    world.engines.moods = {number: "done, killed"}
    await world.apply(GOAL)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    return world


@in_virtual_time
async def test_what_a_step_writes_does_not_grow_with_the_engines() -> None:
    sizes = []
    for engines in (9, 90):
        world = World([HOME] * engines)
        await world.apply(GOAL)
        await world.arbiter.settle()
        steps = world.disk.versions("operation", "op-1")
        sizes.append(sum(len(one.text) for one in steps) / len(steps))
    assert sizes[1] < 1.05 * sizes[0]


@pytest.mark.parametrize("is_before", [False, True])
@pytest.mark.parametrize("number", [0, 5, 9, 12])
@in_virtual_time
async def test_each_engine_goes_back_to_where_it_stood(number: int, is_before: bool) -> None:
    """Also in an operation that a controller began which wrote it with every step."""
    world = await killed(number)
    world.arbiter.runner.abort(world.arbiter.history.get("op-1"), "an operator wants it back")
    if is_before:
        as_each_step_wrote_them(world)
    world.start()
    await world.tick()
    assert world.states() == {"plan-1": "rolled back"}
    stand = [engine.placement for engine in world.homes.values()]
    assert all(map(alike, stand, (HOME, OTHER)))
    record = world.arbiter.history.get("op-1")
    assert targets_of(world.disk, record) == {"e0": HOME.digest, "e1": OTHER.digest}
    assert (record.value.engines, record.value.at, record.value.engine) == (2, 0, "e0")


@in_virtual_time
async def test_they_outlive_the_steps_and_go_with_the_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World([HOME, OTHER])
    await world.apply(GOAL)
    await world.arbiter.settle()
    monkeypatch.setattr(ledger, "EARLIER", 0)
    world.disk.prune("operation", 500, BEGIN_S)
    first, last = world.disk.versions("operation", "op-1")
    assert (first.version, last.final) == (1, True)
    assert world.arbiter.placements_in_use() >= {HOME.digest, OTHER.digest}
    await world.arbiter.rollback(POOL, "", "back")
    await world.arbiter.settle()
    assert world.stand_at(HOME)
    world.disk.prune("operation", 0, BEGIN_S)
    assert world.disk._connection.execute("SELECT count(*) FROM records WHERE "
                                          "kind = 'operation'").fetchone() == (0,)  # fmt: skip
    assert world.arbiter.history.ends() == set()
