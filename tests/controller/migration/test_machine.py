from itertools import product
from pathlib import Path

import numpy as np
import pytest

from controller.migration.commands import (
    Agree,
    Command,
    Commit,
    Copy,
    Discard,
    Drop,
    Release,
    Stage,
    Switch,
    Transfer,
    Verify,
)
from controller.migration.machine import FINAL, TRANSITIONS, Attempt, Event, State, documentation
from placer.schedule import Budget, schedule
from tests.builders import a_topology
from tests.controller.tiny_pool import GOAL, HOME

PAGE = Path(__file__).parents[3] / "docs" / "migration.md"
BAD = (Event.REFUSED, Event.LOST, Event.LATE, Event.ABORT, Event.RESTART)
OPEN = [state for state in State if state not in FINAL]
WITH_ROUNDS = (State.AGREEING, State.COMMITTING)
# What cannot happen: only rounds and a map can be done with, all agree on another width before
# anything is done for it, and only going back is tried again.
NEVER = {
    *((state, Event.LAST) for state in OPEN if state not in WITH_ROUNDS),
    *((state, Event.RESIZES) for state in OPEN if state is not State.AGREEING),
    *((state, Event.TIRED) for state in OPEN if state is not State.DISCARDING),
    *product(FINAL, Event),
}


def test_every_event_in_every_state_leads_somewhere_or_cannot_happen() -> None:
    assert set(product(State, Event)) - set(TRANSITIONS) == NEVER


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize("event", BAD)
def test_whatever_goes_wrong_what_was_begun_is_discarded(state: State, event: Event) -> None:
    assert TRANSITIONS[state, event] is State.DISCARDING


def test_all_goes_well_in_this_order() -> None:
    path, state = [State.STAGING], State.STAGING
    while state is not State.COMMITTING:
        path.append(state := TRANSITIONS[state, Event.DONE])
    assert path == ["staging", "agreeing", "dropping", "copying", "committing"]
    assert TRANSITIONS[state, Event.DONE] is State.DROPPING
    assert TRANSITIONS[state, Event.LAST] is State.VERIFYING
    assert TRANSITIONS[State.AGREEING, Event.LAST] is State.VERIFYING
    assert TRANSITIONS[State.VERIFYING, Event.DONE] is State.SETTLED


def test_another_width_comes_all_at_once() -> None:
    path, state = [], TRANSITIONS[State.AGREEING, Event.RESIZES]
    while state is not State.SETTLED:
        path.append(state)
        state = TRANSITIONS[state, Event.DONE]
    assert path == ["transferring", "switching", "releasing", "verifying"]


def test_it_settles_only_after_verifying() -> None:
    into = {pair for pair, then in TRANSITIONS.items() if then is State.SETTLED}
    assert into == {(State.VERIFYING, Event.DONE)}


@pytest.mark.parametrize("state", OPEN)
@pytest.mark.parametrize("end", FINAL)
def test_from_every_state_every_end_can_be_reached(state: State, end: State) -> None:
    reached = {state}
    for _ in State:
        reached |= {then for (at, _), then in TRANSITIONS.items() if at in reached}
    assert end in reached


def test_each_state_asks_for_its_command() -> None:
    budget = Budget(HOME.slots, scratch_slots=1)
    found = schedule(HOME, GOAL, HOME.slots, a_topology(), budget)
    attempt = Attempt(7, HOME, found.after, found.rounds)
    first, second = attempt.rounds
    assert [attempt.command(state, 1) for state in (State.DROPPING, State.COPYING)] == [
        Drop(7, second),
        Copy(7, second),
    ]
    assert attempt.command(State.COMMITTING, 0) == Commit(7, first)
    assert attempt.command(State.AGREEING, 0) == Agree(7)
    assert attempt.command(State.VERIFYING, 0) == Verify(7, GOAL.digest)
    assert attempt.command(State.DISCARDING, 0) == Discard(7)
    assert attempt.command(State.TRANSFERRING, 0) == Transfer(7)
    assert attempt.command(State.SWITCHING, 0) == Switch(7)
    assert attempt.command(State.RELEASING, 0) == Release(7)
    stage: Command = attempt.command(State.STAGING, 0)
    assert isinstance(stage, Stage)
    assert (stage.epoch, stage.before) == (7, HOME)
    assert np.array_equal(stage.after.physical_to_logical, GOAL.physical_to_logical)


@pytest.mark.parametrize("state", FINAL)
def test_at_an_end_nothing_is_asked(state: State) -> None:
    with pytest.raises(ValueError, match=f"{state} is final"):
        Attempt(7, HOME, GOAL, ()).command(state, 0)


def test_the_page_shows_the_table_of_today() -> None:
    shown = PAGE.read_text().split("<!-- table begins -->\n")[1].split("<!-- table ends -->")[0]
    assert shown == documentation(), "python -m controller.migration.machine prints what it should"
