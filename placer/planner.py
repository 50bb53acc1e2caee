"""From a problem to an answer. Pure: the same problem gives the same plan, byte for byte."""

from dataclasses import replace
from decimal import ROUND_UP, Context
from functools import cache

import numpy as np

from placer.checks import violations
from placer.cost import moves, score, steps
from placer.cost.balance import rank_load
from placer.cost.moves import MoveCost
from placer.cost.payoff import Payoff, payoff_of
from placer.errors import PlacementError
from placer.guard import advice, guarded
from placer.limits import clashes
from placer.optimizers import UNEVEN, optimizer
from placer.placement import Placement
from placer.plan import (
    Comparison,
    Hold,
    Infeasible,
    Move,
    Plan,
    Provenance,
    Reach,
    Solution,
    saving,
)
from placer.problem import Problem
from placer.repair import faults, repair
from placer.schedule import fewest_moves
from placer.trace import Trace, told

SAFEGUARDED = "joint"  # never worse by the score than what stands or than eplb


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
    problem = replace(mended, profile=guarded(mended.profile, mended.objective.guard))
    solution = _found(problem, name)
    broken = violations(solution.placement, problem.objective, problem.model, problem.topology)
    if broken:
        raise PlacementError(
            f"{name} cannot keep the limits ({broken[0]}): use another --optimizer"
        )
    return _best(problem, solution) if name == SAFEGUARDED else solution


def _found(problem: Problem, name: str) -> Solution:
    solution = optimizer(name)(problem)
    placement = _idle_stay(problem, fewest_moves(problem, solution.placement))
    return replace(solution, placement=placement)


def _best(problem: Problem, solution: Solution) -> Solution:
    """The solution, or what is faster by the score: the placement that stands, or eplb's."""
    trace = None if problem.objective.guard else problem.trace
    step_s = score(problem, solution.placement, trace, only_timed=True).step_s
    stands = "linear" if problem.current is None else "current"
    baselines = {stands: problem.start}
    if problem.current is None or problem.objective.max_moved == 1:  # it moves nearly all
        baselines["eplb"] = _found(problem, "eplb").placement
    for name, placement in baselines.items():
        if violations(placement, problem.objective, problem.model, problem.topology):
            continue
        moved = _moved_share(problem.start, placement)
        if problem.current is not None and moved > problem.objective.max_moved:
            continue
        other_s = score(problem, placement, trace, only_timed=True).step_s
        if other_s < step_s:
            step_s = other_s
            solution = replace(solution, placement=placement, bound_s=None, instead=name)
    return solution


def make_plan(
    problem: Problem,
    solution: Solution,
    provenance: Provenance,
    fit: Trace | None = None,
    holdout: Trace | None = None,
) -> Plan | Hold:
    """What the solution wins, what it moves and why; or that it wins nothing over the current plan.

    ``fit`` is the trace behind the problem's profile, if there is one: the figures are then
    measured on its tokens and not expected from the profile.

    A running map that breaks a rule is never held: if the solution wins no more than mending it,
    the plan is the mended map. One that lost an expert has no figures, the mended map's stand for
    them.

    With a guard, whether it pays is asked of the traffic that it was made for.
    """
    scored = judged = cache(lambda placement, brief=False: score(problem, placement, fit, brief))
    profile = guarded(problem.profile, problem.objective.guard)
    if profile is not problem.profile:
        mixed = replace(problem, profile=profile)
        judged = cache(lambda placement, brief=False: score(mixed, placement, None, brief))
    mended, start = _mended(problem), problem.start
    if problem.current is not None:
        further = moves.cost(problem, mended.start, solution.placement)
        brief = fit is None  # a trace tells all at once
        scores = judged(mended.start, brief), judged(solution.placement, brief)
        payoff = payoff_of(replace(mended, profile=profile), solution.placement, *scores)
        reason = _not_worth(solution, payoff, further)
        if reason and mended is problem:
            return Hold(reason)
        if reason:
            solution = Solution(mended.start, notes=(f"nothing more than mending: {reason}",))
        elif problem.model.sized:
            moving = f"moving takes {further.seconds:.3g} s, and {payoff.told}"
            solution = replace(solution, notes=(*solution.notes, moving))
    elif solution.instead == "linear":
        return Hold("no placement was found that is faster than the linear one that stands")
    placement, measurable = solution.placement, mended.start if start.lost else start
    on_fit = Comparison(scored(measurable), scored(placement))
    cost = moves.cost(problem, start, placement)
    mends = () if mended is problem else tuple(faults(problem))
    on_holdout = None
    if holdout is not None:
        on_holdout = Comparison(
            score(problem, measurable, holdout), score(problem, placement, holdout)
        )
    on_guarded = None
    if judged is not scored:
        on_guarded = Comparison(judged(measurable), judged(placement))
    plan = Plan(
        placement=placement,
        mends=mends,
        model=problem.model,
        topology=problem.topology,
        objective=problem.objective,
        provenance=provenance,
        fit=on_fit,
        holdout=on_holdout,
        guarded=on_guarded,
        frontier=tuple(_reach(problem, share, few, fit) for share, few in solution.first),
        moves=_moves(problem, start, placement),
        move_cost=cost,
        bound_s=solution.bound_s,
        whole_step_s=steps.whole_step_s(problem, on_fit.before.step_s),
        notes=(*told(problem.profile.notes), *solution.notes, *_advice(problem)),
    )
    return replace(plan, reason=_reason(plan, cost.moved))


def _reach(problem: Problem, share: float, few: Placement, fit: Trace | None) -> Reach:
    found = score(problem, few, fit, only_timed=True)
    moved = int(moves.arrivals(problem.start, few).sum())
    return Reach(share, moved, found.balancedness, found.step_s)


def _advice(problem: Problem) -> list[str]:
    said = "" if problem.objective.guard else advice(problem.profile)
    return [said] if said else []


def _reason(plan: Plan, moved: int) -> str:
    mending = f"mends: {'; '.join(plan.mends)}; " if plan.mends else ""
    where, gain, whole = "", plan.gain, plan.whole_gain
    if plan.guarded:
        where = f"with {plan.objective.guard:.0%} unknown traffic "
        gain, whole = 1 - plan.guarded.after.step_s / plan.guarded.before.step_s, None
    if gain and gain > 0:
        return f"{mending}{where}{saving(gain, whole)} for {moved} moved slots"
    if plan.mends:
        return f"{mending}{moved} moved slots win no time"
    return "no faster than the linear placement on this traffic"


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
    """What remains once the running map keeps the rules: from there, and with what is left of
    ``max_moved``. The problem itself if there is nothing to mend."""
    current, objective = problem.current, problem.objective
    if current is None or (running := repair(problem)) is current:
        return problem
    left = max(objective.max_moved - _moved_share(current, running), 0.0)
    return replace(problem, current=running, objective=replace(objective, max_moved=left))


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


def _moved_share(before: Placement, after: Placement) -> float:
    return float(moves.arrivals(before, after).sum() / after.filled)


def _not_worth(solution: Solution, payoff: Payoff, cost: MoveCost) -> str:
    """Why the current plan should stay, or nothing."""
    if not cost.moved:
        why = "; ".join(solution.notes) or "the current plan is as good as this optimizer's"
        return f"no expert would move: {why}"
    if payoff.gain < payoff.noise:
        return (
            f"gain {payoff.gain:.2%} of the MoE layers' time < noise {payoff.noise:.2%}: the "
            "difference may be chance; a longer recording would tell"
        )
    if payoff.seconds < cost.seconds:
        return (
            f"moving {cost.moved} slots takes {cost.seconds:.3g} s and {payoff.told}: it does not "
            "pay within the horizon"
        )
    return ""


def _moves(problem: Problem, before: Placement, after: Placement) -> tuple[Move, ...]:
    load = problem.profile.load
    share = load / np.maximum(load.sum(axis=1, keepdims=True), 1e-300)
    weight = rank_load(load, before)
    relative = weight / np.maximum(weight.mean(axis=1, keepdims=True), 1e-300)
    layer, slot = np.nonzero(moves.arrivals(before, after))
    expert, gpu = after.physical_to_logical[layer, slot], after.gpu_of_slot[slot]
    gpus, node_of = np.arange(before.gpus), before.node_of_gpu
    held = before.held_in(before.gpus)[layer, expert]
    # In the same node if there is one, then the lowest.
    rank = (node_of[gpu][:, None] != node_of) * before.gpus + gpus
    source = np.where(held, rank, 2 * before.gpus).argmin(axis=1)
    columns = (
        layer, expert, source, gpu, slot, held.any(axis=1), share[layer, expert],
        before.replicas[layer, expert], after.replicas[layer, expert],
        relative[layer, source], relative[layer, gpu],
    )  # fmt: skip
    result = []
    for at, e, whence, to, into, known, part, old, new, there, here in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        if not known:
            reason = "no GPU held it: its tokens could not be served"
        elif new > old:
            reason = f"{part:.1%} of the layer's load: {new} replicas, not {old}"
        elif there > here:
            reason = f"GPU {whence} carried {there:.2f}x the mean load, GPU {to} {here:.2f}x"
        else:
            reason = f"changes places with experts that leave GPU {to}"
        result.append(Move(at, e, whence if known else None, to, into, reason))
    return tuple(result)
