"""Whether to move now: pure. Every answer says why, with numbers.

That a plan pays (over its noise, and over the price of its moves) was asked when it was made; a
Hold says why not. Here it is asked whether it keeps on paying: ``confirmations`` decisions in a row
must want to move, the last change must be ``cooldown_s`` ago, and the hour may be closed.
"""

from dataclasses import dataclass
from typing import Literal

from controller.config import PoolPolicy
from placer.plan import Hold, Infeasible, Plan

Verdict = Literal["hold", "infeasible", "wait", "propose", "act"]


@dataclass(frozen=True, slots=True)
class Past:
    """streak: decisions in a row that wanted to move; changed_s: unix time of the last change"""

    streak: int = 0
    changed_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """outcome: ``hold`` does not pay, ``infeasible`` cannot, ``wait`` would pay but not yet,
    ``propose`` is for an operator to approve, ``act`` begins."""

    outcome: Verdict
    reason: str
    streak: int = 0


def decide(
    answer: Plan | Hold | Infeasible, past: Past, policy: PoolPolicy, now_s: float
) -> Decision:
    """What to do with the optimizer's answer on the traffic of now."""
    if isinstance(answer, Infeasible):
        return Decision("infeasible", answer.reason)
    if isinstance(answer, Hold):
        return Decision("hold", answer.reason)
    streak = past.streak + 1
    if streak < policy.confirmations:
        seen = f"{streak} of {policy.confirmations} decisions in a row that want it"
        return Decision("wait", f"{answer.reason}: {seen}", streak)
    if past.changed_s is not None and (left_s := past.changed_s + policy.cooldown_s - now_s) > 0:
        return Decision("wait", f"{answer.reason}: the last change is too fresh, "
                        f"{left_s:.0f} s of cooldown_s are left", streak)  # fmt: skip
    if policy.mode == "advisory":
        return Decision("propose", f"{answer.reason}: advisory, waits for approval", streak)
    if reason := policy.closed(now_s):
        return Decision("wait", f"{answer.reason}: {reason}", streak)
    return Decision("act", answer.reason, streak)
