"""Limits that clash: what no placement can keep, and what would do."""

from typing import NoReturn

from placer.cost.memory import budget_bytes, experts_that_fit, slots_that_fit
from placer.errors import PlacementError
from placer.plan import Infeasible
from placer.problem import Problem


def clashes(problem: Problem) -> Infeasible | None:
    """The fewest limits that no placement can keep together, and what would satisfy them."""
    model, topology, objective = problem.model, problem.topology, problem.objective
    fitting = slots_that_fit(model, topology, objective)
    if fitting < model.experts:
        _refuse_memory(problem)
    allowed = f"{budget_bytes(topology, objective) / 1e9:.1f} GB of memory"
    if problem.slots > fitting and not objective.uneven:  # those beyond experts stay empty
        return Infeasible(
            f"{problem.slots} slots clash with {allowed} on each of {topology.gpus} GPUs "
            f"({topology.name}): use --redundant {fitting - model.experts} or less, or more GPUs"
        )
    per_gpu = problem.slots // topology.gpus
    if objective.keep_groups and model.groups % topology.nodes:
        return Infeasible(
            f"{model.groups} groups of experts clash with {topology.nodes} nodes"
            ": use a node count that divides the groups, or leave --keep-groups out"
        )
    apart = topology.nodes if objective.keep_groups else 1
    within = model.experts // apart
    if per_gpu > within and not objective.allow_duplicates:
        where = " of its node" if apart > 1 else ""
        return Infeasible(
            f"{per_gpu} slots a GPU clash with {within} experts{where} and no expert twice on a "
            f"GPU: use --redundant {within * topology.gpus - model.experts} or less"
            ", or --allow-duplicates"
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
    each = experts_that_fit(model, topology, problem.objective)
    if not problem.objective.uneven:
        each -= each % model.layers
    gpus = -(-model.layers * model.experts // each)
    raise PlacementError(
        f"{model.name}'s experts take {experts / 1e9:.1f} GB and {topology.gpus} GPUs "
        f"({topology.name}) have room for {room * topology.gpus / 1e9:.1f} GB"
        f": use at least {gpus} GPUs"
    )
