"""A wall clock that is put on by a year, and back: durations are what they would have been."""

from collections.abc import Sequence
from typing import Any

import pytest

from controller.changes.operations import Scale
from controller.fleet.workers import FORGOTTEN_S
from controller.migration.commands import Command, Outcome, Transfer
from controller.samples import Sample
from controller.size_settings import Autoscale
from placer.plan import Plan
from placer.worker import GONE_S
from tests.controller.changes.test_scaling import Elastic
from tests.controller.tiny_pool import (
    BYTES,
    GOAL,
    HOME,
    OTHER,
    POOL,
    SKEWED,
    World,
    decided,
    in_virtual_time,
    only,
)

YEAR_S = 365 * 86_400.0
UNEVEN = [[400, 100, 100, 400]] * 2  # where experts stand as in OTHER
AUTOMATIC: dict[str, Any] = {"mode": "automatic", "confirmations": 1, "cooldown_s": 300.0}
jumps = pytest.mark.parametrize(
    "jump_s", [(YEAR_S, -YEAR_S), (-YEAR_S, YEAR_S)], ids=["on", "back"]
)


def a_world(**policy: Any) -> World:
    return World(begin_s=2 * YEAR_S, **policy)


async def look(world: World, after_s: float) -> None:
    """At traffic that was counted just now."""
    await world.clock.sleep(after_s)
    world.count(UNEVEN)
    await world.tick()


@jumps
@in_virtual_time
async def test_tokens_are_counted_as_long_as_their_window(jump_s: Sequence[float]) -> None:
    """Of 100 s, in halves."""
    world = a_world(window_s=100.0)
    world.count(SKEWED)
    for seconds in jump_s:
        world.clock.jump(seconds)
        await world.clock.sleep(20.0)
        world.count(SKEWED)
    assert only(world.fleet.pool(POOL)).tokens("mixed") == 3_000
    for after_s, tokens in ((59.0, 3_000), (1.0, 0)):
        await world.tick(after_s)
        assert only(world.fleet.pool(POOL)).tokens("mixed") == tokens


@jumps
@in_virtual_time
async def test_a_cooldown_lasts_as_long_as_it_should(jump_s: Sequence[float]) -> None:
    world = a_world(**AUTOMATIC)
    await world.apply(OTHER)
    await world.arbiter.settle()
    for seconds, left in zip(jump_s, ("200 s", "100 s"), strict=True):
        world.clock.jump(seconds)
        await look(world, 100.0)
        assert f"{left} of cooldown_s are left" in decided(world)[1]
    await look(world, 100.0)
    assert decided(world)[0] == "act"


@pytest.mark.parametrize(
    ("jump_s", "left"), [(0.0, "200 s"), (-YEAR_S, "300 s"), (50.0, "150 s"), (YEAR_S, "")]
)
@in_virtual_time
async def test_a_cooldown_survives_a_restart_and_is_never_longer_than_it_is(
    jump_s: float, left: str
) -> None:
    world = a_world(**AUTOMATIC)
    await world.apply(OTHER)
    await world.arbiter.settle()
    await world.clock.sleep(100.0)
    world.clock.jump(jump_s)  # while no controller runs
    world.start()
    await look(world, 0.0)
    outcome, reason = decided(world)
    assert outcome == ("wait" if left else "act")
    assert not left or f"{left} of cooldown_s are left" in reason
    if left:
        await look(world, float(left.split()[0]))
        assert decided(world)[0] == "act"


@jumps
@in_virtual_time
async def test_an_engine_that_does_not_answer_is_waited_for_until_its_deadline(
    jump_s: Sequence[float],
) -> None:
    world = a_world()
    world.engines.moods = {2: "silent"}

    def jump(number: int) -> None:
        if number == 2:
            world.clock.jump(jump_s[0])

    world.engines.after = jump
    await world.apply(GOAL)
    begun_s = world.clock.monotonic()
    await world.arbiter.settle()
    assert world.clock.monotonic() - begun_s == 60.0
    assert "no answer in time" in world.disk.newest("operation")[0].value.why


@jumps
@in_virtual_time
async def test_workers_are_gone_when_they_have_been_silent_for_so_long(
    jump_s: Sequence[float],
) -> None:
    world = a_world()
    member = world.fleet.engine(POOL, "e0")[0]
    for seconds in jump_s:
        world.clock.jump(seconds)
        assert world.fleet.is_heard(member)
    await world.clock.sleep(GONE_S)
    assert not world.fleet.is_heard(member)
    world.clock.jump(jump_s[0])
    await world.clock.sleep(FORGOTTEN_S - GONE_S - 1)
    world.fleet.forget()
    assert world.fleet.pools
    await world.clock.sleep(1.0)
    world.fleet.forget()
    assert world.fleet.pools == {}


@pytest.mark.parametrize("jump_s", [0.0, YEAR_S, -YEAR_S])
@in_virtual_time
async def test_a_snapshot_is_of_no_use_for_longer_than_its_window(jump_s: float) -> None:
    """Of a controller that was killed when a wall clock was wrong, or is started when it is."""
    world = a_world(window_s=100.0)
    world.count(SKEWED)
    await world.tick()
    world.clock.jump(jump_s)
    world.start()
    pool = only(world.fleet.pool(POOL))
    assert pool.tokens("mixed") == 1_000
    profile = pool.profile("mixed", world.clock.monotonic())
    assert (profile is None) == (jump_s > 0)
    await world.clock.sleep(100.0)
    assert pool.profile("mixed", world.clock.monotonic()) is None


@in_virtual_time
async def test_a_clock_that_is_put_on_makes_no_record_old() -> None:
    world = a_world()
    await world.apply(GOAL)
    await world.arbiter.settle()
    await world.tick()
    before = [record.number for record in world.disk.history() if record.final]
    world.clock.jump(YEAR_S)
    await world.tick()
    world.clock.jump(-YEAR_S)
    await world.tick()
    assert {record.number for record in world.disk.history()} >= set(before)


@in_virtual_time
async def test_agents_hear_of_plans_though_the_clock_is_put_back() -> None:
    """They listen to later epochs than they were offered."""
    world = a_world(rank_bytes=BYTES)
    epochs = []
    for goal, jump_s in ((GOAL, YEAR_S), (HOME, -YEAR_S), (OTHER, 0.0)):
        world.clock.jump(jump_s)
        await world.apply(goal)
        await world.arbiter.settle()
        epochs.append(world.disk.newest("operation")[0].value.epoch)
    assert epochs == sorted(set(epochs))


@jumps
@in_virtual_time
async def test_who_waits_longest_for_its_turn_is_next(jump_s: Sequence[float]) -> None:
    """Other keys and what is written down of it meanwhile are no reason to wait anew."""
    world = a_world()
    change = Scale(4, 2)
    for pool, seconds in ((POOL, jump_s[0]), ("code", jump_s[1]), ("math", 0.0)):
        world.arbiter.queue.put(pool, change, pool, "more users")
        world.clock.jump(seconds)
    plan = world.arbiter.propose(POOL, Plan(GOAL), "", "an operator's plan")
    world.arbiter.plans.approve(plan.id, plan.version, "go")
    world.arbiter.queue.put(POOL, change, "again", "more users")
    assert [one.id for one in world.arbiter.queue.waiting] == ["op-1", "op-2", "op-3", "plan-1"]
    world.start()
    assert world.arbiter.queue.place("op-1") == 1


@jumps
@in_virtual_time
async def test_a_change_of_size_takes_as_long_as_its_steps(jump_s: Sequence[float]) -> None:
    """Of which one lasts 20 s."""
    world = Elastic([HOME], begin_s=2 * YEAR_S, autoscale=Autoscale(least=1, most=8))
    carry_out = world.engines.carry_out

    async def slowly(pool: str, engine: str, command: Command) -> Outcome:
        if isinstance(command, Transfer):
            world.clock.jump(jump_s[0])
            await world.clock.sleep(20.0)
        return await carry_out(pool, engine, command)

    world.engines.carry_out = slowly  # type: ignore[method-assign]
    world.engines.samples[POOL, "e0"] = Sample()
    await world.scale(4)
    await world.arbiter.settle()
    world.hear()
    pool = world.fleet.pool(POOL)
    await world.loop.loads.read(pool)
    scaling = world.loop.loads.scaling(only(pool), 1.0)
    assert scaling is not None
    assert (scaling.size.ranks, scaling.resize_s) == (4, 20.0)
