"""Writes golden_ledger.db: what a controller of version 0.1.0 left when it was killed.

From the repository's root, at commit b4a1a3f with this file and tests/controller/builders.py:

    python -m tests.controller.ledger.golden_ledger

whole_operations.db is the same of commit ac27ec2, where each step of an operation still wrote where
all its engines had stood. Neither is made again: later controllers must read what those wrote.
Their clocks went from second 1000 to ENDS_S. Two engines of a pool had this life:

1. The loop saw skewed traffic, waited, and proposed plan-1, which nobody approved.
2. plan-2 (GOAL) was applied by op-1, and the engines acknowledged it.
3. plan-3 (OTHER) was applied by op-2 and taken back by op-3, so that plan-2 stands again.
4. Another width was asked for and refused: op-4.
5. plan-4 (OTHER) was begun by op-5, which an operator ended: it went back.
6. plan-5 (OTHER) was begun by op-6. The controller was killed when e0 had made its first copies.
"""

from contextlib import suppress
from pathlib import Path

from controller.changes.operations import Scale
from tests.controller.tiny_pool import (
    BEGIN_S,
    GOAL,
    OTHER,
    POOL,
    SKEWED,
    TICK_S,
    KilledError,
    World,
    a_registration,
)

PATH = Path(__file__).with_suffix(".db")
KEPT = (PATH, PATH.with_name("whole_operations.db"))
ENDS_S = BEGIN_S + 3 * TICK_S


async def _live(world: World) -> None:
    for _ in range(3):
        world.count(SKEWED)
        await world.tick(TICK_S)
    await world.apply(GOAL)
    await world.arbiter.settle()
    for engine in world.homes:
        world.loop.acknowledge(a_registration(engine, epoch=7, digest=GOAL.digest))
    world.loop.acknowledge(a_registration("e1", epoch=7, digest=GOAL.digest, refused_epoch=8))
    await world.apply(OTHER)
    await world.arbiter.settle()
    await world.arbiter.rollback(POOL, "back", "latency is worse")
    await world.arbiter.settle()
    await world.arbiter.scale(POOL, (Scale(4, 2), None, ""), "wide", "more users")

    def end(number: int) -> None:
        if number == begun + 3:
            world.arbiter.runner.abort(world.arbiter.history.get("op-5"), "not now", "stop")

    begun, world.engines.after = len(world.engines.asked), end
    await world.apply(OTHER)
    await world.arbiter.settle()
    world.engines.after = lambda number: None
    await world.tick()
    world.engines.moods = {len(world.engines.asked) + 3: "done, killed"}
    await world.apply(OTHER)
    with suppress(KilledError):
        await world.arbiter.settle()


def main() -> None:
    PATH.unlink(missing_ok=True)
    world = World(path=PATH)
    world.clock.run(_live(world))
    world.disk.close()
    PATH.with_name(f"{PATH.name}.lock").unlink()


if __name__ == "__main__":
    main()
