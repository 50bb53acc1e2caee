"""Why a plan, why each of its moves, and why what stands should stay."""

import numpy as np

from placer.cost import moves
from placer.cost.balance import rank_load
from placer.cost.moves import MoveCost
from placer.cost.payoff import Payoff
from placer.guard import advice
from placer.placement import Placement
from placer.plan import Move, Plan, Solution, saving
from placer.problem import Problem


def advised(problem: Problem) -> list[str]:
    said = "" if problem.objective.guard else advice(problem.profile)
    return [said] if said else []


def reason_of(plan: Plan, moved: int) -> str:
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


def not_worth(solution: Solution, payoff: Payoff, cost: MoveCost) -> str:
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


def moves_with_reasons(problem: Problem, before: Placement, after: Placement) -> tuple[Move, ...]:
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
