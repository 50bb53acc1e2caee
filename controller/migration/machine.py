"""The migration of one engine as a table: where it stands, what happens, where it goes.

Going there and coming back are the same walk: an attempt to get from one placement to another, in
the rounds of placer's schedule. Each round drops replicas that others cover, copies beside serving,
then commits from one step to the next. To another width all is transferred beside serving, and the
new ranks serve from one step to the next. So at every moment each expert stands in some slot, and
whatever goes wrong, what was copied and does not serve is discarded, and another attempt starts
from what stands: back, or after a restart of the controller on to the same goal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

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
from placer.placement import Placement
from placer.schedule import Round


class State(StrEnum):
    STAGING = "staging"
    AGREEING = "agreeing"
    DROPPING = "dropping"
    COPYING = "copying"
    COMMITTING = "committing"
    TRANSFERRING = "transferring"
    SWITCHING = "switching"
    RELEASING = "releasing"
    VERIFYING = "verifying"
    DISCARDING = "discarding"
    SETTLED = "settled"
    HALTED = "halted"


class Event(StrEnum):
    DONE = "done"
    LAST = "done, no round left"
    RESIZES = "done, to another width"
    REFUSED = "refused"
    LOST = "lost"
    LATE = "late"
    ABORT = "abort"
    RESTART = "restart"
    TIRED = "tired"  # tried again often enough


TRANSITIONS: dict[tuple[State, Event], State] = {
    # There, and back.
    (State.STAGING, Event.DONE): State.AGREEING,
    (State.AGREEING, Event.DONE): State.DROPPING,
    (State.AGREEING, Event.LAST): State.VERIFYING,
    (State.DROPPING, Event.DONE): State.COPYING,
    (State.COPYING, Event.DONE): State.COMMITTING,
    (State.COMMITTING, Event.DONE): State.DROPPING,
    (State.COMMITTING, Event.LAST): State.VERIFYING,
    (State.AGREEING, Event.RESIZES): State.TRANSFERRING,
    (State.TRANSFERRING, Event.DONE): State.SWITCHING,
    (State.SWITCHING, Event.DONE): State.RELEASING,
    (State.RELEASING, Event.DONE): State.VERIFYING,
    (State.VERIFYING, Event.DONE): State.SETTLED,
    # An engine that says no.
    (State.STAGING, Event.REFUSED): State.DISCARDING,
    (State.AGREEING, Event.REFUSED): State.DISCARDING,
    (State.DROPPING, Event.REFUSED): State.DISCARDING,
    (State.COPYING, Event.REFUSED): State.DISCARDING,
    (State.COMMITTING, Event.REFUSED): State.DISCARDING,
    (State.TRANSFERRING, Event.REFUSED): State.DISCARDING,
    (State.SWITCHING, Event.REFUSED): State.DISCARDING,
    (State.RELEASING, Event.REFUSED): State.DISCARDING,
    (State.VERIFYING, Event.REFUSED): State.DISCARDING,
    # A rank or an engine that went away in the middle.
    (State.STAGING, Event.LOST): State.DISCARDING,
    (State.AGREEING, Event.LOST): State.DISCARDING,
    (State.DROPPING, Event.LOST): State.DISCARDING,
    (State.COPYING, Event.LOST): State.DISCARDING,
    (State.COMMITTING, Event.LOST): State.DISCARDING,
    (State.TRANSFERRING, Event.LOST): State.DISCARDING,
    (State.SWITCHING, Event.LOST): State.DISCARDING,
    (State.RELEASING, Event.LOST): State.DISCARDING,
    (State.VERIFYING, Event.LOST): State.DISCARDING,
    # The watchdog: no answer by the deadline.
    (State.STAGING, Event.LATE): State.DISCARDING,
    (State.AGREEING, Event.LATE): State.DISCARDING,
    (State.DROPPING, Event.LATE): State.DISCARDING,
    (State.COPYING, Event.LATE): State.DISCARDING,
    (State.COMMITTING, Event.LATE): State.DISCARDING,
    (State.TRANSFERRING, Event.LATE): State.DISCARDING,
    (State.SWITCHING, Event.LATE): State.DISCARDING,
    (State.RELEASING, Event.LATE): State.DISCARDING,
    (State.VERIFYING, Event.LATE): State.DISCARDING,
    # An operator who wants it back.
    (State.STAGING, Event.ABORT): State.DISCARDING,
    (State.AGREEING, Event.ABORT): State.DISCARDING,
    (State.DROPPING, Event.ABORT): State.DISCARDING,
    (State.COPYING, Event.ABORT): State.DISCARDING,
    (State.COMMITTING, Event.ABORT): State.DISCARDING,
    (State.TRANSFERRING, Event.ABORT): State.DISCARDING,
    (State.SWITCHING, Event.ABORT): State.DISCARDING,
    (State.RELEASING, Event.ABORT): State.DISCARDING,
    (State.VERIFYING, Event.ABORT): State.DISCARDING,
    (State.DISCARDING, Event.ABORT): State.DISCARDING,
    # A controller that was killed and finds itself in the middle.
    (State.STAGING, Event.RESTART): State.DISCARDING,
    (State.AGREEING, Event.RESTART): State.DISCARDING,
    (State.DROPPING, Event.RESTART): State.DISCARDING,
    (State.COPYING, Event.RESTART): State.DISCARDING,
    (State.COMMITTING, Event.RESTART): State.DISCARDING,
    (State.TRANSFERRING, Event.RESTART): State.DISCARDING,
    (State.SWITCHING, Event.RESTART): State.DISCARDING,
    (State.RELEASING, Event.RESTART): State.DISCARDING,
    (State.VERIFYING, Event.RESTART): State.DISCARDING,
    (State.DISCARDING, Event.RESTART): State.DISCARDING,
    # From what stands then, on to where it should; that is tried again, up to a point.
    (State.DISCARDING, Event.DONE): State.STAGING,
    (State.DISCARDING, Event.REFUSED): State.DISCARDING,
    (State.DISCARDING, Event.LOST): State.DISCARDING,
    (State.DISCARDING, Event.LATE): State.DISCARDING,
    (State.DISCARDING, Event.TIRED): State.HALTED,
}
FINAL = (State.SETTLED, State.HALTED)
SIMPLE: dict[State, Callable[[int], Command]] = {  # what is asked has an epoch alone
    State.AGREEING: Agree,
    State.TRANSFERRING: Transfer,
    State.SWITCHING: Switch,
    State.RELEASING: Release,
    State.DISCARDING: Discard,
}


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """The way from ``before`` to what stands after the last round, ``after``. An engine that moves
    by itself is given no rounds; nor is one that changes its width, which it does all at once."""

    epoch: int
    before: Placement
    after: Placement
    rounds: tuple[Round, ...]

    @property
    def resizes(self) -> bool:
        return self.before.gpus != self.after.gpus

    def command(self, state: State, index: int) -> Command:
        """What to ask of the engine in this state. index: of ``rounds``, where the state has one"""
        if state in SIMPLE:
            return SIMPLE[state](self.epoch)
        match state:
            case State.STAGING:
                return Stage(self.epoch, self.before, self.after)
            case State.DROPPING:
                return Drop(self.epoch, self.rounds[index])
            case State.COPYING:
                return Copy(self.epoch, self.rounds[index])
            case State.COMMITTING:
                return Commit(self.epoch, self.rounds[index])
            case State.VERIFYING:
                return Verify(self.epoch, self.after.digest)
        raise ValueError(f"{state} is final")


def documentation() -> str:
    """The table and its diagram, for docs/migration.md."""
    events = list(Event)
    lines = ["| | " + " | ".join(events) + " |", "|---" * (len(events) + 1) + "|"]
    for state in State:
        if state not in FINAL:
            row = [TRANSITIONS.get((state, event), "") for event in events]
            lines.append(f"| **{state}** | " + " | ".join(row) + " |")
    edges: dict[tuple[State, State], list[Event]] = {}
    for (state, event), then in TRANSITIONS.items():
        edges.setdefault((state, then), []).append(event)
    diagram = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.STAGING}"]
    diagram += [f"    {a} --> {b}: {', '.join(found)}" for (a, b), found in edges.items()]
    diagram += [f"    {state} --> [*]" for state in FINAL] + ["```"]
    return "\n".join([*lines, "", *diagram]) + "\n"


if __name__ == "__main__":
    print(documentation(), end="")
