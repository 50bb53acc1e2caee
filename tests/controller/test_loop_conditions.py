import logging

import pytest

from controller.engines.in_memory import MemoryEngine
from placer.plan import Plan
from tests.builders import a_placement
from tests.controller.tiny_pool import (
    POOL,
    SKEWED,
    TICK_S,
    KilledError,
    World,
    a_delta,
    a_registration,
    decided,
    in_virtual_time,
    is_even,
)


@in_virtual_time
async def test_a_pool_in_trouble_keeps_no_other_from_its_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(confirmations=1)
    three = a_placement([[0, 1, 2, 3, 0, 1]] * 2, gpus=3)
    world.engines.engines["code", "e0"] = MemoryEngine(three)
    registration = a_registration(pool="code", slots=6, ep_size=3)
    world.fleet.register(registration)
    world.fleet.push(registration.id, 1, [a_delta(SKEWED)])
    world.count(SKEWED)
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            await world.tick()
    assert list(world.loop.conditions) == ["code"]
    assert world.loop.conditions["code"].startswith("3 GPUs do not fill nodes of 2 (by hand)")
    assert decided(world)[0] == "propose"
    assert len(caplog.records) == 1  # not again and again


@in_virtual_time
async def test_a_bug_is_told_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.count(SKEWED)

    async def broken(*_: object) -> Plan:
        raise ZeroDivisionError("by zero")

    with monkeypatch.context() as patched:
        patched.setattr(world.loop.planner, "answer", broken)
        await world.tick()
    assert world.loop.conditions == {POOL: "ZeroDivisionError: by zero (a bug: see the log)"}
    assert "Traceback" in caplog.text
    await world.tick(TICK_S)
    assert (world.loop.conditions, decided(world)[0]) == ({}, "wait")


@in_virtual_time
async def test_with_a_full_disk_nothing_moves_and_then_it_goes_on() -> None:
    world = World(mode="automatic", confirmations=1)
    world.count(SKEWED)
    world.disk.is_full = True
    for _ in range(3):
        await world.tick(TICK_S)
        world.loop.acknowledge(a_registration(epoch=1))
    assert set(world.loop.conditions) >= {"ledger", POOL, "acknowledgements"}
    assert all("the disk is full: free some" in text for text in world.loop.conditions.values())
    assert world.engines.asked == []
    world.disk.is_full = False
    world.loop.acknowledge(a_registration(epoch=1))
    await world.tick(TICK_S)
    assert (world.loop.conditions, world.states(), is_even(world)) == (
        {},
        {"plan-1": "applied"},
        True,
    )


@in_virtual_time
async def test_an_operation_that_a_full_disk_held_up_is_resumed() -> None:
    world = World(mode="automatic", confirmations=1)
    world.count(SKEWED)
    world.engines.after = lambda number: setattr(world.disk, "is_full", number == 4)
    await world.loop.tick()
    await world.clock.sleep(TICK_S)
    await world.loop.tick()
    assert "the disk is full" in world.loop.conditions["operations"]
    assert len(world.engines.asked) == 5
    world.disk.is_full = False
    for _ in range(2):
        await world.tick(TICK_S)
    assert (world.loop.conditions, world.states(), is_even(world)) == (
        {},
        {"plan-1": "applied"},
        True,
    )


@in_virtual_time
async def test_a_controller_that_was_killed_goes_on_where_it_was() -> None:
    world = World(mode="automatic", confirmations=1)
    world.count(SKEWED)
    world.engines.moods = {4: "killed"}
    with pytest.raises(KilledError):
        await world.tick()
    world.start()
    await world.tick(TICK_S)
    assert (world.states(), is_even(world)) == ({"plan-1": "applied"}, True)


@in_virtual_time
async def test_if_no_engine_says_what_stands_nothing_is_decided() -> None:
    world = World()
    world.count(SKEWED)
    for engine in world.homes.values():
        engine.is_gone = True
    await world.tick()
    assert decided(world) == (
        "hold", "chat: e1 of chat is gone: start it again: it is not known what stands",
    )  # fmt: skip
    world.homes["e1"].is_gone = False
    await world.tick()
    assert decided(world)[0] == "wait"
