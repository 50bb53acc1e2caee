"""Whether to move experts now. Every answer says why, with numbers.

That a plan pays (over its noise, and over the price of its moves) was asked when it was made; a
Hold says why not. Here it is asked whether it keeps on paying: ``confirmations`` decisions in a row
must want to move (a map that breaks a rule is no matter of traffic: one decision does), the last
change must be ``cooldown_s`` ago, twice as long for each one in a row that failed, and the hour may
be closed.
"""

from controller.policies.policy import Decision, Seen
from placer.plan import Hold, Infeasible

DOUBLINGS = 6  # of the cooldown, at most


def rebalance(seen: Seen) -> Decision:
    """What to do with the optimizer's answer on the traffic of now."""
    plan, past, settings = seen.answer, seen.past, seen.settings
    if isinstance(plan, Infeasible):
        return Decision("infeasible", plan.reason)
    if isinstance(plan, Hold):
        return Decision("hold", plan.reason)
    streak = past.streak + 1
    if streak < settings.confirmations and not plan.mends:
        wanted = f"{streak} of {settings.confirmations} decisions in a row that want it"
        return Decision("wait", f"{plan.reason}: {wanted}", streak)
    cooldown_s = settings.cooldown_s * 2 ** min(past.failures, DOUBLINGS)
    if past.rested_s is not None and (left_s := cooldown_s - past.rested_s) > 0:
        failed = f" and {past.failures} in a row failed" if past.failures else ""
        why = f"the last change is too fresh{failed}, {left_s:.0f} s of cooldown_s are left"
        return Decision("wait", f"{plan.reason}: {why}", streak)
    if settings.mode == "advisory":
        reason = f"{plan.reason}: advisory, waits for approval"
        return Decision("propose", reason, streak, plan)
    if reason := settings.closed(seen.now):
        return Decision("wait", f"{plan.reason}: {reason}", streak)
    return Decision("act", plan.reason, streak, plan)
