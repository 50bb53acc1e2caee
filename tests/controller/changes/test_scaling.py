"""Another width as an operation: two engines of 2 ranks get 4."""

from typing import Any

import pytest

from controller.changes.arbiter import BusyError
from controller.changes.operations import Rollback
from controller.changes.sizing import sized
from controller.fleet.workers import FleetError
from controller.migration.machine import State
from tests.controller.tiny_pool import (
    GOAL,
    HOME,
    POOL,
    KilledError,
    World,
    a_registration,
    in_virtual_time,
)

STEPS = ["Stage", "Agree", "Transfer", "Switch", "Release", "Verify"]


class Elastic(World):
    """Whose engines can, and say what width they have."""

    def hear(self) -> None:
        for name, engine in self.homes.items():
            width: dict[str, Any] = {
                "ep_size": engine.placement.gpus,
                "slots": engine.placement.slots,
            }
            self.fleet.register(a_registration(name, actor="there", can_resize=True, **width))

    async def scale(self, ranks: int, key: str = "") -> Any:
        change = await sized(self.arbiter, self.loop.planner, POOL, ranks)
        return await self.arbiter.scale(POOL, change, key, "more users")

    @property
    def widths(self) -> list[int]:
        return [engine.placement.gpus for engine in self.homes.values()]


@in_virtual_time
async def test_engine_after_engine_gets_the_width_and_all_experts() -> None:
    world = Elastic()
    record = await world.scale(4)
    await world.arbiter.settle()
    operation = world.arbiter.history.get(record.id).value
    assert (operation.phase, world.widths) == ("succeeded", [4, 4])
    assert world.engines.names == [f"{name} {step}" for name in ("e0", "e1") for step in STEPS]
    assert set(operation.seconds) == {
        State.STAGING, State.AGREEING, State.TRANSFERRING, State.SWITCHING, State.RELEASING,
        State.VERIFYING,
    }  # fmt: skip
    for engine in world.homes.values():
        assert engine.placement.digest == operation.goal
        assert not engine.placement.lost


@in_virtual_time
async def test_its_price_is_told_before() -> None:
    """4 experts of 2 layers on 4 ranks, one each: half of them are copied to the new ones."""
    world = Elastic()
    change, after, refused = await sized(world.arbiter, world.loop.planner, POOL, 4)
    assert refused == ""
    assert after is not None
    assert change.price is not None
    kept, copied = change.price.kept + change.price.remapped, change.price.copied
    assert (kept, copied, change.price.loaded) == (4, 4, 0)
    assert change.price.p2p_bytes == 4 * world.homes["e0"].expert_bytes


@in_virtual_time
async def test_the_same_key_is_the_same_operation_and_another_has_to_wait() -> None:
    world = Elastic()
    first = await world.scale(4, "mine")
    assert world.arbiter.history.known("mine").id == first.id  # type: ignore[union-attr]
    with pytest.raises(BusyError, match=f"{first.id} is at work on {POOL}"):
        await world.scale(4)
    await world.arbiter.settle()
    world.hear()
    with pytest.raises(FleetError, match="have 4 ranks already"):
        await world.scale(4)


@pytest.mark.parametrize("at", range(12))
@in_virtual_time
async def test_a_killed_controller_goes_on_from_where_it_was(at: int) -> None:
    world = Elastic()
    world.engines.moods[at] = "done and killed"
    await world.scale(4)
    with pytest.raises(KilledError):
        await world.arbiter.settle()
    world.start()
    await world.arbiter.resume()
    await world.arbiter.settle()
    assert world.widths == [4, 4]
    (operation,) = world.disk.newest("operation")
    assert operation.value.phase == "succeeded"


@pytest.mark.parametrize("at", range(12))
@in_virtual_time
async def test_if_an_engine_fails_those_before_it_go_back(at: int) -> None:
    world = Elastic()
    world.engines.moods[at] = "refused"
    record = await world.scale(4)
    await world.arbiter.settle()
    operation = world.arbiter.history.get(record.id).value
    assert (operation.phase, world.widths) == ("rolled back", [2, 2])
    assert world.stand_at(HOME)


@in_virtual_time
async def test_it_can_be_taken_back_once_it_is_done() -> None:
    world = Elastic()
    await world.scale(4)
    await world.arbiter.settle()
    world.hear()
    back = await world.arbiter.rollback(POOL, "back", "latency is worse")
    assert back.value.change == Rollback("", HOME.digest, 4)
    await world.arbiter.settle()
    assert world.stand_at(HOME)


@in_virtual_time
async def test_plans_for_the_width_before_are_of_no_use() -> None:
    world = Elastic()
    await world.apply(GOAL)
    await world.arbiter.settle()
    await world.scale(4)
    await world.arbiter.settle()
    assert world.states() == {"plan-1": "superseded"}


@in_virtual_time
async def test_what_does_not_fit_is_refused_with_what_would() -> None:
    world = Elastic()
    record = await world.scale(3)
    assert record.value.phase == "refused"
    assert record.value.why.startswith("3 GPUs do not fill nodes of 2")
