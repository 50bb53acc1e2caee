"""What a placement takes of each GPU's memory."""

from placer.arrays import IntArray
from placer.model import ModelShape
from placer.objective import Objective
from placer.placement import Placement
from placer.topology import Topology


def gpu_bytes(model: ModelShape, placement: Placement) -> IntArray:
    """[gpus] weight bytes: the experts of its slots, and what every GPU holds."""
    filled = placement.copies.sum(axis=(0, 1))
    return filled * model.expert_bytes + model.other_bytes


def budget_bytes(topology: Topology, objective: Objective) -> int:
    """Bytes of one GPU that weights may use."""
    return round(topology.gpu.hbm_bytes * objective.memory_share)


def experts_that_fit(model: ModelShape, topology: Topology, objective: Objective) -> int:
    """Experts, of all layers together, that the memory of one GPU has room for."""
    room = budget_bytes(topology, objective) - model.other_bytes
    return max(room, 0) // model.expert_bytes


def slots_that_fit(model: ModelShape, topology: Topology, objective: Objective) -> int:
    """Slots a layer, over all GPUs, that memory has room for; the mean of the layers where GPUs
    may hold different numbers of their experts."""
    fitting = experts_that_fit(model, topology, objective)
    if objective.uneven:
        return fitting * topology.gpus // model.layers
    return fitting // model.layers * topology.gpus
