"""Whether to move now: pure. Every answer says why, with numbers.

That a plan pays (over its noise, and over the price of its moves) was asked when it was made; a
Hold says why not. Here it is asked whether it keeps on paying: ``confirmations`` decisions in a row
must want to move (a map that breaks a rule is no matter of traffic: one decision does), the last
change must be ``cooldown_s`` ago, twice as long for each one in a row that failed, and the hour may
be closed.
"""

from dataclasses import dataclass
from typing import Literal

from controller.config import PoolPolicy
from placer.plan import Hold, Infeasible, Plan

DOUBLINGS = 6  # of the cooldown, at most

Verdict = Literal["hold", "infeasible", "wait", "propose", "act"]


@dataclass(frozen=True, slots=True)
class Past:
    """
    streak:   decisions in a row that wanted to move
    rested_s: since the last change; None if there was none
    failures: changes in a row, up to that one, that were taken back
    """

    streak: int = 0
    rested_s: float | None = None
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """outcome: ``hold`` does not pay, ``infeasible`` cannot, ``wait`` would pay but not yet,
    ``propose`` is for an operator to approve, ``act`` begins."""

    outcome: Verdict
    reason: str
    streak: int = 0


def decide(
    answer: Plan | Hold | Infeasible, past: Past, policy: PoolPolicy, now: float
) -> Decision:
    """What to do with the optimizer's answer on the traffic of now, in unix seconds."""
    if isinstance(answer, Infeasible):
        return Decision("infeasible", answer.reason)
    if isinstance(answer, Hold):
        return Decision("hold", answer.reason)
    streak = past.streak + 1
    if streak < policy.confirmations and not answer.mends:
        seen = f"{streak} of {policy.confirmations} decisions in a row that want it"
        return Decision("wait", f"{answer.reason}: {seen}", streak)
    cooldown_s = policy.cooldown_s * 2 ** min(past.failures, DOUBLINGS)
    if past.rested_s is not None and (left_s := cooldown_s - past.rested_s) > 0:
        failed = f" and {past.failures} in a row failed" if past.failures else ""
        why = f"the last change is too fresh{failed}, {left_s:.0f} s of cooldown_s are left"
        return Decision("wait", f"{answer.reason}: {why}", streak)
    if policy.mode == "advisory":
        return Decision("propose", f"{answer.reason}: advisory, waits for approval", streak)
    if reason := policy.closed(now):
        return Decision("wait", f"{answer.reason}: {reason}", streak)
    return Decision("act", answer.reason, streak)
