"""One problem, one answer: the function that planners run, wherever they do."""

from dataclasses import replace

from controller.config import in_settings, told_in_settings
from controller.ports import Unseen
from placer.placement import Placement
from placer.plan import Hold, Infeasible, Plan, Provenance
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.resize.price import Price, price


def answer(
    problem: Problem, optimizer: str, unseen: Unseen | None = None
) -> Plan | Hold | Infeasible:
    """Deterministic: a controller that was killed would answer the same. What it advises are
    settings."""
    with told_in_settings():
        found = _answer(problem, optimizer, unseen)
    if isinstance(found, Plan):
        notes = tuple(map(in_settings, found.notes))
        return replace(found, reason=in_settings(found.reason), notes=notes)
    return replace(found, reason=in_settings(found.reason))


def resized(problem: Problem, current: Placement, optimizer: str) -> Price | Infeasible:
    """See ``Planner.resized``."""
    with told_in_settings():
        found = price(problem, current, None, None, optimizer)
    return Infeasible(in_settings(found.reason)) if isinstance(found, Infeasible) else found


def _answer(problem: Problem, optimizer: str, unseen: Unseen | None) -> Plan | Hold | Infeasible:
    current = problem.current.digest if problem.current else None
    provenance = Provenance(optimizer, {"current": current})
    trace = unseen.trace if unseen else None
    found = make_plan(problem, solve(problem, optimizer), provenance, holdout=trace)
    return _judged(found, unseen) if unseen and isinstance(found, Plan) else found


def _judged(plan: Plan, unseen: Unseen) -> Plan | Hold:
    """On requests that it was not made from it must win, too; or mend, which is no matter of
    traffic."""
    if plan.holdout is None:
        return replace(plan, reason=f"{plan.reason}; {unseen.told}")
    gain = 1 - plan.holdout.after.step_s / plan.holdout.before.step_s
    if gain > 0:
        return replace(plan, reason=f"{plan.reason}; {gain:.1%} less on {unseen.told}")
    lost = f"{-gain:.1%} more on {unseen.told}"
    if plan.mends:
        return replace(plan, reason=f"{plan.reason}; {lost}")
    return Hold(f"{plan.reason}, but {lost}: what it wins may be chance, or too new")
