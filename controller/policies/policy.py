"""What a policy is asked, and what it answers."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from controller.config import PoolPolicy
from controller.ledger.records import form_of
from placer.plan import Hold, Infeasible, Plan

Outcome = Literal["hold", "infeasible", "wait", "propose", "act"]


@dataclass(frozen=True, slots=True)
class Past:
    """
    streak:   decisions of this policy in a row that wanted to move
    rested_s: since the last change; None if there was none
    failures: changes in a row, up to that one, that were taken back
    """

    streak: int = 0
    rested_s: float | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was seen of a pool.

    answer: its optimizer's on the traffic of now, or why it was not asked
    now:    unix seconds
    """

    answer: Plan | Hold | Infeasible
    past: Past
    settings: PoolPolicy
    now: float


@dataclass(frozen=True, slots=True)
class Decision:
    """outcome: ``hold`` does not pay, ``infeasible`` cannot, ``wait`` would pay but not yet,
    ``propose`` is for an operator to approve, ``act`` begins; plan: that it proposes or acts on"""

    outcome: Outcome
    reason: str
    streak: int = 0
    plan: Plan | None = field(default=None, compare=False, repr=False)


class Policy(Protocol):
    """One reason to change something. Pure: the same was seen, the same is decided."""

    def __call__(self, seen: Seen) -> Decision: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A decision as it is written down; nothing of it is needed.

    balancedness: of the traffic of then on the map of then, if both were known
    policy:       whose it is; empty if none was asked
    width:        ranks of the engines that it is about
    """

    outcome: str = ""
    reason: str = ""
    streak: int = 0
    balancedness: float | None = None
    policy: str = ""
    width: int = 0


FORM = form_of(Kept)
