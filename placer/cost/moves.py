"""What it takes to get from one placement to another."""

from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray
from placer.placement import Placement
from placer.problem import Problem


@dataclass(frozen=True, slots=True)
class MoveCost:
    """``moved`` slots need a transfer; ``seconds`` is the busiest link's share of them."""

    moved: int
    moved_share: float
    moved_bytes: int
    network_bytes: int
    seconds: float


def arrivals(before: Placement, after: Placement) -> BoolArray:
    """[layers, slots] slots of ``after`` whose expert was not on that GPU in ``before``."""
    table = after.physical_to_logical
    layer = np.arange(after.layers)[:, None]
    was_there = before.copies[layer, np.maximum(table, 0), after.gpu_of_slot] > 0
    return (table >= 0) & ~was_there


def cost(problem: Problem, before: Placement, after: Placement) -> MoveCost:
    """Each copy comes from a holder in its own node if there is one, else over the network."""
    topology, size = problem.topology, problem.model.expert_bytes
    layer, slot = np.nonzero(arrivals(before, after))
    expert = after.physical_to_logical[layer, slot]
    gpu = after.gpu_of_slot[slot]
    on_node = before.copies.reshape(
        before.layers, before.experts, topology.nodes, topology.gpus_per_node
    ).max(axis=3)
    is_local = on_node[layer, expert, topology.node_of[gpu]] > 0
    local = np.bincount(gpu[is_local], minlength=topology.gpus) * size
    network = np.bincount(gpu[~is_local], minlength=topology.gpus) * size
    seconds = max(
        local.max() / topology.local.bytes_per_s, network.max() / topology.network.bytes_per_s
    )
    return MoveCost(
        moved=len(slot),
        moved_share=len(slot) / after.physical_to_logical.size,
        moved_bytes=len(slot) * size,
        network_bytes=int(network.sum()),
        seconds=float(seconds),
    )
