"""One problem, one answer: the function that planners run, wherever they do."""

from placer.plan import Hold, Infeasible, Plan, Provenance
from placer.planner import make_plan, solve
from placer.problem import Problem


def answer(problem: Problem, optimizer: str) -> Plan | Hold | Infeasible:
    """Deterministic: a controller that was killed would answer the same."""
    solution = solve(problem, optimizer)
    if isinstance(solution, Infeasible):
        return solution
    current = problem.current.digest if problem.current else None
    return make_plan(problem, solution, Provenance(optimizer, {"current": current}))
