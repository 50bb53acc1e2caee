"""One problem, one answer: the function that planners run, wherever they do."""

from dataclasses import replace

from controller.config import in_settings, told_in_settings
from placer.plan import Hold, Infeasible, Plan, Provenance
from placer.planner import make_plan, solve
from placer.problem import Problem


def answer(problem: Problem, optimizer: str) -> Plan | Hold | Infeasible:
    """Deterministic: a controller that was killed would answer the same. What it advises are
    settings."""
    with told_in_settings():
        found = _answer(problem, optimizer)
    if isinstance(found, Plan):
        notes = tuple(map(in_settings, found.notes))
        return replace(found, reason=in_settings(found.reason), notes=notes)
    return replace(found, reason=in_settings(found.reason))


def _answer(problem: Problem, optimizer: str) -> Plan | Hold | Infeasible:
    current = problem.current.digest if problem.current else None
    provenance = Provenance(optimizer, {"current": current})
    return make_plan(problem, solve(problem, optimizer), provenance)
