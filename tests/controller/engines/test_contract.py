"""What the loop may rely on, whatever serves: the same tests for every adapter of ``Engines``."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any

import pytest

from controller.engines.fleet_engines import FleetEngines
from controller.engines.in_memory import MemoryEngine, MemoryEngines
from controller.migration.commands import (
    Agree,
    Command,
    Commit,
    Copy,
    Discard,
    Done,
    Drop,
    Lost,
    Outcome,
    Refused,
    Stage,
    Verify,
)
from controller.ports import EngineLostError, Engines
from placer.files.plans import parse_plan
from placer.parallel import disconnect
from placer.placement import Placement
from placer.schedule import Budget, Transfer, schedule
from tests.builders import a_placement, by_hand
from tests.controller.engines.servings import ENGINE, ByAgents, InMemory, Serving, ThroughRay
from tests.controller.tiny_pool import (
    BYTES,
    GOAL,
    HOME,
    OTHER,
    POOL,
    a_registration,
    alike,
    asynchronous,
    in_virtual_time,
)


@pytest.fixture(autouse=True, scope="module")
def one_ray() -> Iterator[None]:
    """For all tests here, and none elsewhere."""
    yield
    if "ray" in sys.modules:
        disconnect()


@asynccontextmanager
async def living(kind: Callable[[], Any]) -> AsyncIterator[Any]:
    serving = kind()
    life = asyncio.create_task(serving.live())
    await asyncio.sleep(0)
    yield serving
    life.cancel()
    with suppress(asyncio.CancelledError):
        await life


BY_RAY = pytest.param(ThroughRay, marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")])
every = pytest.mark.parametrize("kind", [InMemory, ByAgents, BY_RAY])


def in_its_time(test: Callable[..., Any]) -> Callable[..., None]:
    """That of an engine in a process of its own is everybody's."""

    @wraps(test)
    def timed(kind: Any) -> None:
        (asynchronous if kind is ThroughRay else in_virtual_time)(test)(kind)

    return timed


async def ask(serving: Serving, command: Command) -> Outcome:
    return await serving.engines.carry_out(*ENGINE, command)


def way(engines: Engines, epoch: int, before: Placement, after: Placement) -> list[Command]:
    """All that is asked of an engine, in order."""
    found = schedule(before, after, BYTES, by_hand(), Budget(BYTES, scratch_slots=1))
    if engines.moves_itself(*ENGINE):
        return [Stage(epoch, before, after), Agree(epoch), Verify(epoch, after.digest)]
    commands: list[Command] = [Stage(epoch, before, found.after), Agree(epoch)]
    for round in found.rounds:
        commands += [Drop(epoch, round), Copy(epoch, round), Commit(epoch, round)]
    return [*commands, Verify(epoch, found.after.digest)]


async def digest(serving: Serving) -> str:
    return (await serving.engines.stands(*ENGINE)).digest


@every
@in_its_time
async def test_it_says_what_stands(kind: Any) -> None:
    async with living(kind) as serving:
        assert await digest(serving) == HOME.digest


@every
@in_its_time
async def test_once_verified_what_was_staged_stands(kind: Any) -> None:
    async with living(kind) as serving:
        for epoch, after in ((5, GOAL), (6, OTHER), (7, HOME)):
            before = await serving.engines.stands(*ENGINE)
            for command in way(serving.engines, epoch, before, after):
                assert isinstance(await ask(serving, command), Done)
            assert isinstance(command, Verify)
            assert await digest(serving) == command.digest
            assert alike(await serving.engines.stands(*ENGINE), after)


@every
@in_its_time
async def test_what_is_done_already_is_done_again(kind: Any) -> None:
    async with living(kind) as serving:
        for command in way(serving.engines, 5, HOME, GOAL):
            assert isinstance(await ask(serving, command), Done)
            if not isinstance(command, Stage) or not serving.engines.moves_itself(*ENGINE):
                assert isinstance(await ask(serving, command), Done)
        assert await digest(serving) == GOAL.digest
        for _ in range(2):
            assert isinstance(await ask(serving, Discard(5)), Done)
        assert await digest(serving) == GOAL.digest


@every
@in_its_time
async def test_what_starts_from_another_map_is_not_staged(kind: Any) -> None:
    async with living(kind) as serving:
        refused = await ask(serving, Stage(5, OTHER, GOAL))
        assert refused == Refused(f"it serves {HOME.digest}: plan from that map")
        assert await digest(serving) == HOME.digest


@every
@in_its_time
async def test_what_would_lose_an_expert_is_not_staged(kind: Any) -> None:
    async with living(kind) as serving:
        bad = a_placement([[0, 1, 2, 3], [0, 1, 2, 2]])
        refused = await ask(serving, Stage(5, HOME, bad))
        assert isinstance(refused, Refused)
        assert "layer 1: no slot holds expert 3" in refused.reason
        assert await digest(serving) == HOME.digest


@every
@in_its_time
async def test_what_was_staged_and_discarded_changes_nothing(kind: Any) -> None:
    async with living(kind) as serving:
        serving.takes_up = False
        assert isinstance(await ask(serving, Stage(5, HOME, GOAL)), Done)
        assert isinstance(await ask(serving, Discard(5)), Done)
        assert await digest(serving) == HOME.digest


@every
@in_its_time
async def test_an_engine_that_went_away_is_lost(kind: Any) -> None:
    async with living(kind) as serving:
        await ask(serving, Stage(5, HOME, GOAL))
        serving.go_away()
        with pytest.raises(EngineLostError):
            await digest(serving)
        for command in (Stage(6, HOME, GOAL), Verify(5, GOAL.digest)):
            assert isinstance(await ask(serving, command), Lost)


@every
@in_its_time
async def test_an_engine_that_never_was_is_lost(kind: Any) -> None:
    async with living(kind) as serving:
        with pytest.raises(EngineLostError, match="e9"):
            await serving.engines.stands(POOL, "e9")
        lost = await serving.engines.carry_out(POOL, "e9", Stage(5, HOME, GOAL))
        assert isinstance(lost, Lost)


@in_virtual_time
async def test_in_memory_what_was_copied_and_discarded_has_to_be_copied_again() -> None:
    serving = InMemory()
    stage, _, drop, copy, commit, *_ = way(serving.engines, 5, HOME, GOAL)
    for command in (stage, drop, copy, Discard(5)):
        assert isinstance(await ask(serving, command), Done)
    assert isinstance(await ask(serving, commit), Refused)  # is not staged
    await ask(serving, stage)
    refused = await ask(serving, commit)
    assert isinstance(refused, Refused)
    assert "is not there: copy it first" in refused.reason
    assert await digest(serving) == HOME.digest


@in_virtual_time
async def test_in_memory_an_earlier_epoch_is_discarded_and_a_later_one_stays() -> None:
    serving = InMemory()
    stage, agree, *_ = way(serving.engines, 5, HOME, GOAL)
    await ask(serving, stage)
    await ask(serving, Discard(4))
    assert isinstance(await ask(serving, agree), Done)
    await ask(serving, Discard(6))
    assert await ask(serving, agree) == Refused("epoch 5 is not staged: stage it first")


@in_virtual_time
async def test_in_memory_the_last_copy_of_an_expert_is_never_given_up() -> None:
    serving = InMemory()
    await ask(serving, Stage(5, HOME, GOAL))
    round = schedule(HOME, GOAL, BYTES, by_hand(), Budget(BYTES, scratch_slots=1)).rounds[0]
    dropping = type(round)(((0, 0),), (), (), 0.0)
    assert await ask(serving, Drop(5, dropping)) == Refused(
        "layer 0 would lose expert 0: copy it first"
    )
    one = Transfer(0, 2, 1, 0, 0)
    copying = type(round)((), (one,), (one,), 0.0)
    await ask(serving, Copy(5, copying))
    assert isinstance(await ask(serving, Commit(5, copying)), Refused)
    assert await digest(serving) == HOME.digest
    wrong = await ask(serving, Verify(5, GOAL.digest))
    assert wrong == Refused(f"it serves {HOME.digest} and not {GOAL.digest}")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"refused_epoch": 5, "refused": "too many slots"}, "w1: too many slots"),
        ({"condition": "out of memory"}, "w1: out of memory"),
    ],
)
@in_virtual_time
async def test_agents_that_refuse_an_offer_say_why(said: dict[str, Any], why: str) -> None:
    async with living(ByAgents) as serving:
        serving.takes_up = False
        await ask(serving, Stage(5, HOME, GOAL))
        serving.say(1, **said)
        assert await ask(serving, Verify(5, GOAL.digest)) == Refused(why)


@in_virtual_time
async def test_agents_that_refused_another_epoch_are_waited_for() -> None:
    async with living(ByAgents) as serving:
        serving.say(1, refused_epoch=4, refused="long ago")
        await ask(serving, Stage(5, HOME, GOAL))
        assert await ask(serving, Verify(5, GOAL.digest)) == Done()


@in_virtual_time
async def test_it_is_not_known_what_stands_while_ranks_differ() -> None:
    async with living(ByAgents) as serving:
        serving.ledger.keep_placement(GOAL)
        serving.say(0, epoch=5, digest=GOAL.digest)
        with pytest.raises(EngineLostError, match="ranks of e0 are about to change"):
            await digest(serving)
        serving.say(1, epoch=5, digest=GOAL.digest)
        assert await digest(serving) == GOAL.digest


@in_virtual_time
async def test_a_map_that_nobody_here_planned_is_not_known() -> None:
    async with living(ByAgents) as serving:
        serving.say(digest=GOAL.digest)
        with pytest.raises(EngineLostError, match="e0 serves a map that nobody here planned"):
            await digest(serving)


@in_virtual_time
async def test_an_engine_without_a_balancer_is_offered_nothing() -> None:
    async with living(ByAgents) as serving:
        serving.say(1, can_apply=False)
        refused = await ask(serving, Stage(5, HOME, GOAL))
        assert isinstance(refused, Refused)
        assert refused.reason.startswith("w1: the engine's expert load balancer is off")
        await asyncio.sleep(0)
        assert serving.offered == []


@in_virtual_time
async def test_an_offer_is_made_to_whoever_watches_later_until_it_is_discarded() -> None:
    async with living(ByAgents) as serving:
        await ask(serving, Stage(5, HOME, GOAL))
        await ask(serving, Verify(5, GOAL.digest))
        assert serving.offered == [5]
        epoch, file = await anext(serving.engines.offers(*ENGINE, 4))
        assert (epoch, parse_plan(file.decode(), "").placement.digest) == (5, GOAL.digest)
        await ask(serving, Discard(5))
        late = asyncio.ensure_future(anext(serving.engines.offers(*ENGINE, 0)))
        await asyncio.sleep(0)
        assert not late.done()
        late.cancel()


@pytest.mark.parametrize("command", [Drop, Copy, Commit])
@in_virtual_time
async def test_of_engines_that_move_by_themselves_no_rounds_are_asked(command: Any) -> None:
    round = schedule(HOME, GOAL, BYTES, by_hand(), Budget(BYTES, scratch_slots=1)).rounds[0]
    async with living(ByAgents) as serving:
        with pytest.raises(TypeError):
            await ask(serving, command(5, round))


@in_virtual_time
async def test_each_engine_of_a_fleet_is_reached_through_its_own_door() -> None:
    agents = ByAgents()
    agents.fleet.register(a_registration("e1", actor="engine/chat/e1"))
    actors = MemoryEngines({(POOL, "e1"): MemoryEngine(OTHER)})
    # Pools of one kind each in practice; the door is asked for engine by engine.
    engines = FleetEngines(agents.fleet, by_actor=actors, by_agent=agents.engines)
    stand = [(await engines.stands(POOL, name)).digest for name in ("e0", "e1")]
    assert stand == [HOME.digest, OTHER.digest]
    assert [engines.moves_itself(POOL, name) for name in ("e0", "e1")] == [True, False]
    assert await engines.carry_out(POOL, "e1", Verify(0, OTHER.digest)) == Done()
    with pytest.raises(EngineLostError, match="no engine 'e9'"):
        engines.moves_itself(POOL, "e9")
