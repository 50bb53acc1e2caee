"""From a problem to an answer. Pure: the same problem gives the same plan, byte for byte."""

import numpy as np

from placer.checks import violations
from placer.cost import moves, score
from placer.cost.balance import rank_load
from placer.cost.memory import budget_bytes, slots_that_fit
from placer.errors import PlacementError
from placer.optimizers import optimizer
from placer.placement import Placement
from placer.plan import Comparison, Hold, Infeasible, Move, Plan, Provenance, Solution
from placer.problem import Problem
from placer.trace import Trace


def solve(problem: Problem, name: str) -> Solution | Infeasible:
    """The optimizer's placement, checked.

    Raises PlacementError if even one copy of each expert does not fit the memory, and if an
    optimizer breaks a rule (its plan then goes nowhere).
    """
    chosen = optimizer(name)
    if clash := _clash(problem):
        return clash
    solution = chosen(problem)
    broken = violations(solution.placement, problem.objective, problem.model, problem.topology)
    if broken:
        raise PlacementError(
            f"{name} cannot keep the limits ({broken[0]}): use another --optimizer"
        )
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
    """
    start, placement = problem.start, solution.placement
    on_fit = Comparison(score(problem, start, fit), score(problem, placement, fit))
    gain = 1 - on_fit.after.step_s / on_fit.before.step_s
    if problem.current is not None and gain <= 0:
        return Hold(
            f"the {provenance.optimizer} plan would take {on_fit.after.step_s * 1e3:.3f} ms a step"
            f" where the current one takes {on_fit.before.step_s * 1e3:.3f} ms: nothing to win"
        )
    on_holdout = None
    if holdout is not None:
        on_holdout = Comparison(score(problem, start, holdout), score(problem, placement, holdout))
    cost = moves.cost(problem, start, placement)
    return Plan(
        placement=placement,
        reason=f"a step takes {gain:.1%} less time for {cost.moved} moved slots"
        if gain > 0
        else "no faster than the linear placement on this traffic",
        model=problem.model,
        topology=problem.topology,
        objective=problem.objective,
        provenance=provenance,
        fit=on_fit,
        holdout=on_holdout,
        moves=_moves(problem, start, placement),
        move_cost=cost,
        bound_s=solution.bound_s,
        notes=solution.notes,
    )


def _clash(problem: Problem) -> Infeasible | None:
    """Limits that no placement can keep together, and what would satisfy them."""
    model, topology, objective = problem.model, problem.topology, problem.objective
    fitting = slots_that_fit(model, topology, objective)
    if fitting < model.experts:
        room = budget_bytes(topology, objective) - model.other_bytes
        if room <= 0:
            raise PlacementError(
                f"{model.name} needs {model.other_bytes / 1e9:.1f} GB on every GPU besides its "
                f"experts and {topology.name} allows {budget_bytes(topology, objective) / 1e9:.1f}"
                " GB: use GPUs with more memory"
            )
        need = model.layers * model.experts * model.expert_bytes
        raise PlacementError(
            f"{model.name}'s experts take {need / 1e9:.1f} GB and {topology.gpus} GPUs "
            f"({topology.name}) have room for {room * topology.gpus / 1e9:.1f} GB"
            f": use at least {_gpus_needed(problem)} GPUs"
        )
    if problem.slots > fitting:
        return Infeasible(
            f"{problem.slots} slots clash with memory: each of {topology.gpus} GPUs "
            f"({topology.name}) may use {budget_bytes(topology, objective) / 1e9:.1f} GB"
            f": use --redundant {fitting - model.experts} or less, or more GPUs"
        )
    per_gpu = problem.slots // topology.gpus
    if per_gpu > model.experts and not objective.allow_duplicates:
        return Infeasible(
            f"{per_gpu} slots a GPU clash with {model.experts} experts and no expert twice on a "
            f"GPU: use --redundant {model.experts * (topology.gpus - 1)} or less"
            ", or --allow-duplicates"
        )
    if objective.keep_groups and model.groups % topology.nodes:
        return Infeasible(
            f"{model.groups} groups of experts clash with {topology.nodes} nodes"
            ": use a node count that divides the groups, or leave --keep-groups out"
        )
    return None


def _gpus_needed(problem: Problem) -> int:
    model = problem.model
    room = budget_bytes(problem.topology, problem.objective) - model.other_bytes
    per_gpu = room // (model.expert_bytes * model.layers)
    return -(-model.experts // per_gpu) if per_gpu else -1


def _moves(problem: Problem, before: Placement, after: Placement) -> tuple[Move, ...]:
    load = problem.profile.load
    share = load / np.maximum(load.sum(axis=1, keepdims=True), 1e-300)
    weight = rank_load(load, before)
    relative = weight / np.maximum(weight.mean(axis=1, keepdims=True), 1e-300)
    copies, replicas = before.copies, (before.replicas, after.replicas)
    node_of = before.node_of_gpu
    result = []
    for layer, slot in np.argwhere(moves.arrivals(before, after)).tolist():
        expert = int(after.physical_to_logical[layer, slot])
        gpu = int(after.gpu_of_slot[slot])
        holders = np.nonzero(copies[layer, expert])[0]
        source = int(min(holders, key=lambda g: (node_of[g] != node_of[gpu], g)))
        old, new = (int(count[layer, expert]) for count in replicas)
        if new > old:
            reason = f"{share[layer, expert]:.1%} of the layer's load: {new} replicas, not {old}"
        elif relative[layer, source] > relative[layer, gpu]:
            reason = (
                f"GPU {source} carried {relative[layer, source]:.2f}x the mean load"
                f", GPU {gpu} {relative[layer, gpu]:.2f}x"
            )
        else:
            reason = f"changes places with experts that leave GPU {gpu}"
        result.append(Move(layer, expert, source, gpu, slot, reason))
    return tuple(result)
