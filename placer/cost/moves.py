"""What it takes to get from one placement to another."""

from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray
from placer.placement import Placement
from placer.problem import Problem
from placer.topology import Topology

# Share of the links' rate that is free for moves while requests are served. With it a full
# rebalance of DeepSeek-V3 on 32 GPUs takes 0.9 s, which is what users of vLLM's EPLB measure.
LEFT_BY_SERVING = 0.5


@dataclass(frozen=True, slots=True)
class MoveCost:
    """``moved`` slots need a transfer; ``seconds`` is the busiest link's share of them, beside
    serving."""

    moved: int
    moved_share: float
    moved_bytes: int
    network_bytes: int
    seconds: float


def arrivals(before: Placement, after: Placement) -> BoolArray:
    """[layers, slots] slots of ``after`` whose expert was not on that GPU in ``before``."""
    table = after.physical_to_logical
    layer = np.arange(after.layers)[:, None]
    was_there = before.held_in(before.gpus)[layer, np.maximum(table, 0), after.gpu_of_slot]
    return (table >= 0) & ~was_there


def rates(topology: Topology) -> tuple[float, float]:
    """Bytes a second that a GPU's local and network links have left for moves."""
    return (
        topology.local.bytes_per_s * LEFT_BY_SERVING,
        topology.network.bytes_per_s * LEFT_BY_SERVING,
    )


def cost(problem: Problem, before: Placement, after: Placement) -> MoveCost:
    """Each copy comes from a holder in its own node if there is one, else over the network: from
    another node or, if nobody holds the expert, from where the checkpoint is."""
    topology, size = problem.topology, problem.model.expert_bytes
    layer, slot = np.nonzero(arrivals(before, after))
    expert = after.physical_to_logical[layer, slot]
    gpu = after.gpu_of_slot[slot]
    is_local = before.held_in(topology.nodes)[layer, expert, topology.node_of[gpu]]
    local = np.bincount(gpu[is_local], minlength=topology.gpus) * size
    network = np.bincount(gpu[~is_local], minlength=topology.gpus) * size
    local_rate, network_rate = rates(topology)
    seconds = max(local.max() / local_rate, network.max() / network_rate)
    return MoveCost(
        moved=len(slot),
        moved_share=len(slot) / after.filled,
        moved_bytes=len(slot) * size,
        network_bytes=int(network.sum()),
        seconds=float(seconds),
    )
