"""What a policy is asked, and what it answers."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from controller.config import PoolPolicy
from controller.fleet.signals import Signals
from controller.ledger.records import form_of
from controller.size_settings import Autoscale
from placer.plan import Hold, Infeasible, Plan

Outcome = Literal["hold", "infeasible", "wait", "propose", "act"]
Answer: TypeAlias = Plan | Hold | Infeasible


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


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """The size of a pool whose engines are alike. slots: a layer, on all ranks of an engine"""

    ranks: int
    engines: int = 1
    slots: int = 0

    @property
    def gpus(self) -> int:
        return self.ranks * self.engines

    def __str__(self) -> str:
        return f"{self.engines} x {self.ranks} ranks" if self.engines > 1 else f"{self.ranks} ranks"


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """What autoscalers see of a pool.

    size:      what it is now
    full_rate: prompt tokens a second that a rank computes at full speed, as far as it has shown;
               0: never seen
    balance:   mean rank load over the largest, of the traffic of now on the map that stands
    live:      what its engines can change while they serve: ``width``, ``redundancy``
    widths:    of an engine that its hardware and memory allow; None: all
    resize_s:  that a change takes, from when it is asked for
    rested_s:  since the last one ended; None if there was none
    failures:  changes in a row, up to that one, that were refused or failed
    wishes:    how many seconds ago which number of GPUs was wanted, newest last
    """

    signals: Signals
    size: Size
    full_rate: float = 0.0
    balance: float = 1.0
    live: frozenset[str] = frozenset({"width"})
    resize_s: float = 0.0
    rested_s: float | None = None
    failures: int = 0
    wishes: tuple[tuple[float, int], ...] = ()
    widths: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What was seen of a pool.

    answer:  its optimizer's on the traffic of now, or why it was not asked
    now:     unix seconds
    scaling: None if nothing is known of its load
    """

    answer: Answer
    past: Past
    settings: PoolPolicy
    now: float
    scaling: Scaling | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """outcome: ``hold`` does not pay, ``infeasible`` cannot, ``wait`` would pay but not yet,
    ``propose`` is for an operator to approve, ``act`` begins; plan, size: that it proposes or acts
    on; wish: GPUs that it would have by the load of this moment alone, 0 if it is about none"""

    outcome: Outcome
    reason: str
    streak: int = 0
    plan: Plan | None = field(default=None, compare=False, repr=False)
    size: Size | None = None
    wish: int = 0


class Policy(Protocol):
    """One reason to change something. Pure: the same was seen, the same is decided."""

    def __call__(self, seen: Seen) -> Decision | None:
        """None if it is off."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a rule wants, before limits, stabilisation and cool-down: GPUs for the pool, and why
    with numbers. instead: of more GPUs, what does as well and costs none"""

    gpus: int
    reason: str
    instead: Literal["", "replan", "redundancy"] = ""


class Rule(Protocol):
    """How large a pool should be. Pure."""

    def __call__(self, scaling: Scaling, settings: Autoscale, answer: Answer) -> Wish: ...


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
