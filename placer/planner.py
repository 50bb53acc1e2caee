"""From a problem to an answer. Pure: the same problem gives the same plan, byte for byte."""

from dataclasses import replace
from typing import NoReturn

import numpy as np

from placer.checks import violations
from placer.cost import moves, outlook, score
from placer.cost.balance import rank_load
from placer.cost.memory import budget_bytes, slots_that_fit
from placer.cost.moves import MoveCost
from placer.errors import PlacementError
from placer.optimizers import optimizer
from placer.placement import Placement
from placer.plan import Comparison, Hold, Infeasible, Move, Plan, Provenance, Solution
from placer.problem import Problem
from placer.schedule import fewest_moves
from placer.trace import Trace, told


def solve(problem: Problem, name: str) -> Solution | Infeasible:
    """The optimizer's placement, with the labels that move the fewest experts, checked.

    Raises PlacementError if even one copy of each expert does not fit the memory, and if an
    optimizer breaks a rule (its plan then goes nowhere).
    """
    chosen = optimizer(name)
    if clash := _clash(problem):
        return clash
    solution = chosen(problem)
    placement = _idle_stay(problem, fewest_moves(problem, solution.placement))
    solution = replace(solution, placement=placement)
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
    cost = moves.cost(problem, start, placement)
    if problem.current is not None and (reason := _not_worth(problem, solution, on_fit, cost)):
        return Hold(reason)
    gain = 1 - on_fit.after.step_s / on_fit.before.step_s
    on_holdout = None
    if holdout is not None:
        on_holdout = Comparison(score(problem, start, holdout), score(problem, placement, holdout))
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
        notes=(*told(problem.profile.notes), *solution.notes),
    )


def _idle_stay(problem: Problem, placement: Placement) -> Placement:
    """The placement, but layers without load as they are: nothing there is worth a move, unless
    what stands breaks a rule."""
    idle = problem.profile.load.max(axis=1) == 0
    if not idle.any():
        return placement
    table = placement.physical_to_logical.copy()
    table[idle] = problem.start.physical_to_logical[idle]
    kept = problem.placement(table)
    rules = (problem.objective, problem.model, problem.topology)
    return placement if violations(kept, *rules) else kept


def _not_worth(problem: Problem, solution: Solution, scores: Comparison, cost: MoveCost) -> str:
    """Why the current plan should stay, or nothing: both sides in seconds."""
    before, after, notes = scores.before, scores.after, solution.notes
    if not cost.moved:
        why = "; ".join(notes) or "the current plan is as good as this optimizer's"
        return f"no expert would move: {why}"
    experts = outlook.experts_gain(problem, problem.start, solution.placement)
    links_s = before.dispatch_s + before.combine_s - after.dispatch_s - after.combine_s
    gain = (experts.seconds + links_s) / before.step_s
    noise = experts.noise_s / before.step_s
    if gain < noise:
        return (
            f"gain {gain:.2%} of a step < noise {noise:.2%}: the difference may be chance; "
            "a longer recording would tell"
        )
    horizon_s = problem.objective.horizon_s
    if gain * horizon_s < cost.seconds:
        return (
            f"gain {gain * horizon_s:.3g} s in {horizon_s:g} s < {cost.seconds:.3g} s for moving "
            f"{cost.moved} slots: it does not pay within the horizon"
        )
    return ""


def _clash(problem: Problem) -> Infeasible | None:
    """The fewest limits that no placement can keep together, and what would satisfy them."""
    model, topology, objective = problem.model, problem.topology, problem.objective
    fitting = slots_that_fit(model, topology, objective)
    if fitting < model.experts:
        _refuse_memory(problem)
    allowed = f"{budget_bytes(topology, objective) / 1e9:.1f} GB of memory"
    if problem.slots > fitting:
        return Infeasible(
            f"{problem.slots} slots clash with {allowed} on each of {topology.gpus} GPUs "
            f"({topology.name}): use --redundant {fitting - model.experts} or less, or more GPUs"
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
    if not objective.survive_node:
        return None
    if topology.nodes < 2:
        return Infeasible("surviving a node clashes with having one: use --nodes 2 or more")
    if objective.keep_groups:
        return Infeasible(
            "every expert on two nodes clashes with each group on one"
            ": leave out --keep-groups or --survive-node"
        )
    # Experts take turns at the nodes, so one node may get one more than another.
    needed = topology.nodes * -(-2 * model.experts // topology.nodes)
    needed = topology.gpus * -(-needed // topology.gpus)
    if needed > fitting:
        return Infeasible(
            f"every expert on two nodes takes {needed} slots, which clash with {allowed} on each "
            f"of {topology.gpus} GPUs ({topology.name}): use more GPUs, or leave out --survive-node"
        )
    if needed > problem.slots:
        return Infeasible(
            f"every expert on two nodes clashes with {problem.slots} slots"
            f": use --redundant {needed - model.experts} or more"
        )
    return None


def _refuse_memory(problem: Problem) -> NoReturn:
    """Not even one copy of each expert fits: the wrong hardware for the model."""
    model, topology = problem.model, problem.topology
    budget = budget_bytes(topology, problem.objective)
    room = budget - model.other_bytes
    if room < model.expert_bytes * model.layers:
        need = model.other_bytes + model.expert_bytes * model.layers
        raise PlacementError(
            f"{model.name} needs {need / 1e9:.1f} GB on every GPU for one expert a layer and "
            f"{topology.name} allows {budget / 1e9:.1f} GB: use GPUs with more memory"
        )
    experts = model.layers * model.experts * model.expert_bytes
    gpus = -(-model.experts // (room // (model.expert_bytes * model.layers)))
    raise PlacementError(
        f"{model.name}'s experts take {experts / 1e9:.1f} GB and {topology.gpus} GPUs "
        f"({topology.name}) have room for {room * topology.gpus / 1e9:.1f} GB"
        f": use at least {gpus} GPUs"
    )


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
