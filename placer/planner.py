"""From a problem to an answer. Pure: the same problem gives the same plan, byte for byte."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import ROUND_UP, Context

import numpy as np

from placer.checks import violations
from placer.cost import moves, steps
from placer.cost.payoff import payoff_of
from placer.errors import PlacementError
from placer.guard import guarded
from placer.limits import clashes
from placer.optimizers import UNEVEN, optimizer
from placer.placement import Placement
from placer.plan import (
    Comparison,
    Hold,
    Infeasible,
    Plan,
    Provenance,
    Reach,
    Solution,
)
from placer.problem import Problem
from placer.reasons import advised, moves_with_reasons, not_worth, reason_of
from placer.repair import faults, repair
from placer.schedule import fewest_moves, match_slots
from placer.scores import held_out, homes_of, runs_at_home, scored, timed
from placer.trace import Trace, told

SAFEGUARDED = "joint"  # never worse by the score than what stands or than eplb
TIE = 1e-9  # share of a step's time below which placements are as fast: rounding


def solve(problem: Problem, name: str) -> Solution | Infeasible:
    """The optimizer's placement, with the labels that move the fewest experts, checked.

    A running map that breaks a rule is mended first, and the optimizer starts from there. With a
    guard, optimizers see the recorded traffic mixed with unknown traffic (guard.py).
    Raises PlacementError if even one copy of each expert does not fit the memory, and if an
    optimizer breaks a rule (its plan then goes nowhere).
    """
    optimizer(name)  # is there such a one?
    if problem.objective.uneven and name not in UNEVEN:
        raise PlacementError(
            f"{name} gives every GPU as many slots of a layer: leave out --uneven, or use "
            f"--optimizer {' or '.join(UNEVEN)}"
        )
    if clash := clashes(problem):
        return clash
    mended = _mended(problem)
    if too_far := _too_far(problem, mended):
        return too_far
    problem = _guarded(mended)
    solution = _found(problem, name)
    broken = _broken(problem, solution.placement)
    if broken:
        raise PlacementError(
            f"{name} cannot keep the limits ({broken[0]}): use another --optimizer"
        )
    if name != SAFEGUARDED:
        return solution
    others = []
    if mended.objective.guard:  # hedging must not cost more than it is worth: without it, too
        known = solve(replace(mended, objective=replace(mended.objective, guard=0.0)), name)
        others = [known] if isinstance(known, Solution) else []
    return _best(problem, solution, others)


def _found(problem: Problem, name: str) -> Solution:
    return _named(problem, optimizer(name)(problem))


def _named(problem: Problem, solution: Solution) -> Solution:
    """With the labels that move the fewest experts: of GPUs, too, unless requests are at home by
    them."""
    found = solution.placement
    if not solution.scheduled:
        found = fewest_moves(problem, found)
    elif problem.current is not None:
        found = match_slots(problem.current, found)
    return replace(solution, placement=_idle_stay(problem, found))


def _broken(problem: Problem, placement: Placement) -> list[str]:
    return violations(placement, problem.objective, problem.model, problem.topology)


def _guarded(problem: Problem) -> Problem:
    """With a guard, the recorded traffic mixed with unknown traffic."""
    if not problem.objective.guard:
        return problem
    return replace(problem, profile=guarded(problem.profile, problem.objective.guard))


def _best(problem: Problem, solution: Solution, others: Sequence[Solution]) -> Solution:
    """What is faster by the score than what stands, and wins most once its moves are paid: the
    solution, the first of its moves, eplb's placement or one of the others. What stands, if nothing
    is."""
    trace = None if problem.objective.guard else problem.trace
    start, name = problem.start, "linear" if problem.current is None else "current"
    still = not moves.arrivals(start, solution.placement).any()
    stands = Solution(start, instead=name, scheduled=runs_at_home(problem))
    best = replace(solution, instead=name) if still else stands
    stands_s, count = np.inf, 1.0
    if problem.current is not None or not _broken(problem, start):
        stands_s = timed(problem, start, trace, runs_at_home(problem)).step_s
    if problem.current is not None:
        count = steps.rate(problem, stands_s).per_s * problem.objective.horizon_s
    least_s = np.inf
    for one in (*_candidates(problem, solution), *others):
        step_s = timed(problem, one.placement, trace, one.scheduled).step_s
        if step_s >= stands_s * (1 - TIE) or step_s * count >= least_s:
            continue
        taken_s = step_s * count
        if problem.current is not None:
            taken_s += moves.cost(problem, start, one.placement).seconds
        if taken_s < least_s * (1 - TIE) and not _broken(problem, one.placement):
            best, least_s = one, taken_s
    if any(best.placement is few for _, few in solution.first):
        best = _named(problem, best)
    uneven = 1 - timed(problem, best.placement, trace).balancedness
    traffic = "" if problem.objective.dispatch == "allgather" else "; traffic has no bound"
    bound = f"balance is within {uneven:.2%} of its bound, all GPUs alike{traffic}"
    return replace(best, first=solution.first, notes=(*best.notes, bound))


def _candidates(problem: Problem, solution: Solution) -> Iterator[Solution]:
    """What may be better than what stands, the preferred first."""
    yield solution
    for share, few in solution.first:
        if share <= problem.objective.max_moved:
            yield replace(solution, placement=few)
    if problem.current is None or problem.objective.max_moved == 1:  # it moves nearly all
        yield replace(_found(problem, "eplb"), instead="eplb")


def make_plan(
    problem: Problem,
    solution: Solution | Infeasible,
    provenance: Provenance,
    fit: Trace | None = None,
    holdout: Trace | None = None,
) -> Plan | Hold | Infeasible:
    """What the solution wins, what it moves and why; or that it wins nothing over the current plan.
    That there is none is the answer already.

    ``fit`` is the trace behind the problem's profile, if there is one: the figures are then
    measured on its tokens and not expected from the profile.

    A running map that breaks a rule is never held: if the solution wins no more than mending it,
    the plan is the mended map. One that lost an expert has no figures, the mended map's stand for
    them.

    With a guard, whether it pays is asked of the traffic that it was made for.
    """
    if isinstance(solution, Infeasible):
        return solution
    runs, at_home, mixed = runs_at_home(problem), solution.scheduled, _guarded(problem)
    on = fit if mixed is problem else None  # what it is judged on
    mended, start = _mended(problem), problem.start
    if problem.current is not None:
        further = moves.cost(problem, mended.start, solution.placement)
        scores = (
            timed(mixed, mended.start, on, runs),
            timed(mixed, solution.placement, on, at_home),
        )
        payoff = payoff_of(_guarded(mended), solution.placement, *scores)
        reason = not_worth(solution, payoff, further)
        if reason and mended is problem:
            return Hold(reason)
        if reason:
            notes = (f"nothing more than mending: {reason}",)
            solution = Solution(mended.start, notes=notes, first=solution.first, scheduled=runs)
        elif problem.model.sized:
            moving = f"moving takes {further.seconds:.3g} s, and {payoff.told}"
            solution = replace(solution, notes=(*solution.notes, moving))
    elif solution.instead == "linear":
        return Hold("no placement was found that is faster than the linear one that stands")
    placement, measurable = solution.placement, mended.start if start.lost else start

    def compared(problem: Problem, trace: Trace | None) -> Comparison:
        return Comparison(
            scored(problem, measurable, trace, at_home=runs),
            scored(problem, placement, trace, at_home=solution.scheduled),
        )

    on_fit = compared(problem, fit)
    cost = moves.cost(problem, start, placement)
    mends = () if mended is problem else tuple(faults(problem))
    on_holdout = None
    if holdout is not None:
        on_holdout = held_out(problem, measurable, solution, fit, holdout)
    plan = Plan(
        placement=placement,
        mends=mends,
        model=problem.model,
        topology=problem.topology,
        objective=problem.objective,
        provenance=provenance,
        fit=on_fit,
        holdout=on_holdout,
        guarded=None if mixed is problem else compared(mixed, None),
        homes=homes_of(problem, placement) if solution.scheduled else None,
        frontier=_frontier(problem, mended.start, solution, fit),
        moves=moves_with_reasons(problem, start, placement),
        move_cost=cost,
        bound_s=solution.bound_s,
        whole_step_s=steps.whole_step_s(problem, on_fit.before.step_s),
        notes=(
            *told(problem.profile.notes),
            *solution.notes,
            *_beyond(problem, placement, provenance.optimizer),
            *advised(problem),
        ),
    )
    return replace(plan, reason=reason_of(plan, cost.moved))


def _frontier(
    problem: Problem, mended: Placement, solution: Solution, fit: Trace | None
) -> tuple[Reach, ...]:
    """The fastest placement found within each share of the slots, all moves from what runs counted.
    Shares that mending does not fit are left out."""
    placements = (mended, *(few for _, few in solution.first), solution.placement)
    found = [
        (
            int(moves.arrivals(problem.start, one).sum()),
            timed(problem, one, fit, solution.scheduled),
        )
        for one in (placements if solution.first else ())
    ]
    found.sort(key=lambda one: one[0])
    rows = []
    for share, _ in solution.first:
        best = found[0]
        for one in found:
            if one[0] <= problem.further(share) and one[1].step_s < best[1].step_s * (1 - TIE):
                best = one
        rows.append(Reach(share, best[0], best[1].balancedness, best[1].step_s))
    return tuple(rows)


def _idle_stay(problem: Problem, placement: Placement) -> Placement:
    """The placement, but layers without load as they are: nothing there is worth a move, unless
    what stands breaks a rule."""
    idle = problem.profile.load.max(axis=1) == 0
    if not idle.any() or placement.slots != problem.start.slots:
        return placement
    table = placement.physical_to_logical.copy()
    table[idle] = problem.start.physical_to_logical[idle]
    kept = problem.placement(table)
    rules = (problem.objective, problem.model, problem.topology)
    return placement if violations(kept, *rules) else kept


def _mended(problem: Problem) -> Problem:
    """What remains once the running map keeps the rules. The problem itself if it does."""
    if problem.current is None or (running := repair(problem)) is problem.current:
        return problem
    moved = int(moves.arrivals(problem.start, running).sum())
    return replace(problem, current=running, mended=moved)


def _too_far(problem: Problem, mended: Problem) -> Infeasible | None:
    """The running map cannot be mended within ``max_moved``, and what would do."""
    start, objective = problem.start, problem.objective
    if mended is problem or _moved_share(start, mended.start) <= objective.max_moved:
        return None
    moved = int(moves.arrivals(start, mended.start).sum())
    slots = mended.start.filled
    enough = Context(prec=2, rounding=ROUND_UP).divide(moved, slots)
    remedies = [f"--max-moved {enough:f} or more"]
    for remedy, lax in (
        ("--allow-duplicates", replace(objective, allow_duplicates=True)),
        ("leave out --survive-node", replace(objective, survive_node=False)),
        ("leave out --keep-groups", replace(objective, keep_groups=False)),
    ):
        relaxed = replace(problem, objective=lax)
        if lax != objective and _moved_share(start, repair(relaxed)) <= objective.max_moved:
            remedies.append(remedy)
    return Infeasible(
        f"{'; '.join(faults(problem))}: mending the current plan moves {moved} of {slots} slots"
        f": needs {', or '.join(remedies)}"
    )


def _beyond(problem: Problem, placement: Placement, name: str) -> tuple[str, ...]:
    """The note that an optimizer moved more than may be: not all know that limit."""
    share = _moved_share(problem.start, placement)
    if problem.current is None or share <= problem.objective.max_moved:
        return ()
    most = problem.objective.max_moved
    return (f"{name} does not know --max-moved {most:g}: it moves {share:.0%} of the slots",)


def _moved_share(before: Placement, after: Placement) -> float:
    return float(moves.arrivals(before, after).sum() / after.filled)
