"""What a migration asks of an engine, and what the engine answers.

An engine carries out one command at a time, on all of its ranks. Each may come twice, if its answer
was lost: what is done already is answered with ``Done`` again.
Whatever the answer, and whoever dies when, every expert of every layer stands in some slot.
"""

from dataclasses import dataclass
from typing import TypeAlias

from placer.placement import Placement
from placer.schedule import Round


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Take the change in, check it and get ready; nothing moves.

    An engine whose map is not ``before``, or that may not serve ``after``, refuses; so does one
    that cannot change its width, if ``after`` has another. Staging another epoch forgets what was
    staged.
    """

    epoch: int
    before: Placement
    after: Placement


@dataclass(frozen=True, slots=True)
class Agree:
    """Have all ranks say that they hold the staged change, and the same: its epoch and digest."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Serve no longer from ``round.drops``, and free them. Refused if an expert would be lost."""

    epoch: int
    round: Round


@dataclass(frozen=True, slots=True)
class Copy:
    """Make ``round.copies``, beside serving: into empty slots, or else into scratch memory."""

    epoch: int
    round: Round


@dataclass(frozen=True, slots=True)
class Commit:
    """Serve from ``round.commits`` from one step to the next, all at once; what their slots held
    before is dropped. Refused if one is not there, or if an expert would be lost."""

    epoch: int
    round: Round


@dataclass(frozen=True, slots=True)
class Transfer:
    """To another width: bring weights to where the new ranks need them, beside serving."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Switch:
    """Serve with the new ranks from one step to the next; sequences go on, with their keys and
    values."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Release:
    """Free what the width before needed. Once more is no harm."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Read map and weights back from the ranks: refused unless the map has this digest and every
    slot holds its expert's weights."""

    epoch: int
    digest: str


@dataclass(frozen=True, slots=True)
class Discard:
    """Forget what is staged, of this epoch or an earlier one, and free what was copied and not
    committed. The map stays."""

    epoch: int


Command: TypeAlias = (
    Stage | Agree | Drop | Copy | Commit | Transfer | Switch | Release | Verify | Discard
)


# In the words of who tells what was under way.
DOING: dict[type, str] = {
    Stage: "staging",
    Agree: "agreeing",
    Drop: "dropping",
    Copy: "copying",
    Commit: "committing",
    Transfer: "transferring",
    Switch: "switching",
    Release: "releasing",
    Verify: "verifying",
    Discard: "discarding",
}


@dataclass(frozen=True, slots=True)
class Done:
    """copied_bytes: between ranks; pause_s: longest time in which no token could be computed"""

    copied_bytes: int = 0
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Refused:
    """It did not happen, and will not."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A rank, or the engine itself, went away in the middle."""

    reason: str


Outcome: TypeAlias = Done | Refused | Lost
