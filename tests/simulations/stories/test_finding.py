"""A fault that is planted in the product is found, and its story shrunk to what it needs."""

from collections.abc import Sequence
from typing import Any

import pytest

from controller.changes.arbiter import Arbiter
from controller.changes.history import History
from controller.migration.commands import Command, Done
from controller.migration.machine import Attempt, State
from simulations.stories.shrinking import minimal, shortest
from simulations.stories.story import Event, Story, a_story
from simulations.stories.world import tell


def found(seed: int) -> tuple[str, list[str]]:
    """The rule that the story breaks, and what happens in the shortest that does."""
    wrong = tell(a_story(seed)).wrong
    assert wrong is not None
    short = shortest(a_story(seed), wrong.rule)
    assert len(short.events) < len(a_story(seed).events)
    return wrong.rule, [event.what for event in short.events]


def test_commit_before_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change alone is enough."""
    right = Attempt.command
    other = {State.COPYING: State.COMMITTING, State.COMMITTING: State.COPYING}

    def wrong(attempt: Attempt, state: State, index: int) -> Command:
        return right(attempt, other.get(state, state), index)

    monkeypatch.setattr(Attempt, "command", wrong)
    assert found(0) == ("engines need not refuse", ["apply"])


def test_a_controller_that_forgets_what_was_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that moves by itself, and a kill meanwhile."""

    async def forget(arbiter: Arbiter) -> None:
        pass

    monkeypatch.setattr(Arbiter, "resume", forget)
    assert found(1) == ("every operation ends", ["kill"])


def test_a_key_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same is asked again once another operation has undone it."""
    monkeypatch.setattr(History, "known", lambda history, key: None)
    assert found(19) == ("one key is one operation", ["scale twice", "rollback"])


def test_an_expert_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an engine that does as it is told."""
    from controller.engines import in_memory
    from placer.placement import EMPTY, Placement

    def careless(engine: Any, changes: Sequence[tuple[int, int, int]]) -> Any:
        table = engine.placement.physical_to_logical.copy()
        for layer, slot, _ in changes:
            table[layer, slot] = EMPTY
        now = engine.placement
        engine.placement = Placement(table, now.experts, now.gpus, now.nodes)
        return Done()

    monkeypatch.setattr(in_memory.MemoryEngine, "_serve", careless)
    assert found(0) == ("every expert is served", ["apply"])


def test_the_shortest_is_exact() -> None:
    """Of 8 events the third and the last are needed, together."""
    events = [Event("shift", at_s=float(second)) for second in range(8)]
    asked = []

    def fails(some: Sequence[Event]) -> bool:
        asked.append(some)
        return events[2] in some and events[7] in some

    assert minimal(events, fails) == [events[2], events[7]]
    assert len(asked) < 2 ** len(events)


def test_a_story_is_read_aloud() -> None:
    events = (
        Event("scale", at_s=60.0, ranks=4, key="k1"),
        Event("kill", on="Commit", nth=2, is_after=True, lasts_s=30.0),
        Event("clock", at_s=90.0, jump_s=-7200.0),
    )
    assert str(Story(7, a_story(0).pools[1:], events)).splitlines() == [
        "seed 7",
        "  p0: 2 engines of 2 ranks, 4 layers x 5 experts in 6 slots, automatic",
        "  0. after 60 s an operator gives p0 4 ranks at once, as k1",
        "  1. as Commit number 2 is carried out, the controller is killed, and back 30 s later",
        "  2. after 90 s the wall clock is put back by 7200 s",
    ]
