"""The way from one placement to another: rounds of copy-then-drop transfers within a budget.

``match_slots`` finds the labels with which the fewest slots move. ``schedule`` decides whom each
copy comes from, when it goes and which slot it takes. ``faults`` replays the result and trusts
nothing. Between rounds every expert of every layer stands complete in some slot.

Time: ranks send and receive at once, at the local link's rate inside their node and at the
network's between nodes, and both links work at the same time. A round takes as long as its busiest
rank, link and direction. Latency is left out, since experts are megabytes.
"""

from math import fsum

from placer.errors import PlacementError
from placer.placement import Placement
from placer.schedule.copies import NETWORK, Copies, Limits, lower_bound_s, needed
from placer.schedule.matching import Relabel, fewest_moves, match_slots, same_shape
from placer.schedule.replay import faults
from placer.schedule.rounds import rounds
from placer.schedule.values import Budget, MigrationSchedule, Round, Transfer
from placer.topology import Topology

__all__ = [
    "Budget",
    "MigrationSchedule",
    "Relabel",
    "Round",
    "Transfer",
    "faults",
    "fewest_moves",
    "match_slots",
    "schedule",
]


def schedule(
    before: Placement, after: Placement, expert_bytes: int, topology: Topology, budget: Budget
) -> MigrationSchedule:
    """Rounds that bring every GPU the experts it has in ``after``; their order on it is free.

    The makespan is the lower bound where scratch memory suffices: 4 slots do for DeepSeek-V3, with
    one or two it takes up to half as long again. A budget that not one copy fits (zero bytes
    freeze) gives no rounds and a reason. Raises PlacementError for placements that cannot follow
    each other or lack an expert.
    """
    same_shape(before, after)
    _nothing_missing(before, "before")
    _nothing_missing(after, "after")
    if (before.gpus, before.nodes) != (topology.gpus, topology.nodes):
        raise PlacementError(
            f"the placements are for {before.gpus} GPUs in {before.nodes} nodes but"
            f" {topology.name} has {topology.gpus} in {topology.nodes}: schedule for this topology"
        )
    copies = needed(before, after)
    if reason := _too_little(copies, expert_bytes, budget):
        return MigrationSchedule((), before, pending=len(copies), reason=reason)
    limits = _limits(expert_bytes, topology, budget)
    found = rounds(before, after, copies, limits)
    if found is None:
        reason = (
            f"scratch_slots is {budget.scratch_slots} but {len(copies)} copies need room to change"
            " places: allow 1 or more"
        )
        return MigrationSchedule((), before, pending=len(copies), reason=reason)
    made, stands = found
    makespan_s = fsum(round.seconds for round in made)
    return MigrationSchedule(
        tuple(made), stands, makespan_s, lower_bound_s(copies, before.gpus, limits)
    )


def _nothing_missing(placement: Placement, name: str) -> None:
    if lost := placement.lost:
        raise PlacementError(
            "layer {} has no expert {} {} the change: give a placement that"
            " holds every expert".format(*lost[0], name)
        )


def _too_little(copies: Copies, expert_bytes: int, budget: Budget) -> str:
    """Why not even one copy fits the budget; empty if one does."""
    limits = {"rank_bytes": budget.rank_bytes if len(copies) else None}
    if NETWORK in copies.link:
        limits["node_bytes"] = budget.node_bytes
    for name, value in limits.items():
        if value == 0:
            return f"{name} is 0: frozen, {len(copies)} copies wait"
        if value is not None and value < expert_bytes:
            return f"{name} is {value} but an expert has {expert_bytes} bytes: allow as many"
    return ""


def _limits(expert_bytes: int, topology: Topology, budget: Budget) -> Limits:
    size = topology.gpus_per_node
    lanes = budget.rank_bytes // expert_bytes
    of_node = lanes * size if budget.node_bytes is None else budget.node_bytes // expert_bytes
    # Whole lanes of a node only: a lane for the rest of its budget would go half empty.
    of_network = min(lanes, max(of_node // size, 1))
    links = (topology.local, topology.network)
    local_s, network_s = (expert_bytes / link.bytes_per_s for link in links)
    return Limits(
        (max(lanes, 1), max(of_network, 1)),
        max(min(of_node, size), 1),
        budget.scratch_slots,
        (local_s, network_s),
    )
