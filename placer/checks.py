"""Whether a placement may be applied. Trusts nobody: shares no code with the optimizers.

``violations`` returns one sentence a fault; an empty list is a pass.
"""

from collections import Counter

from placer.model import ModelShape
from placer.objective import Objective
from placer.placement import EMPTY, Placement
from placer.topology import Topology


def violations(
    placement: Placement,
    objective: Objective,
    model: ModelShape | None = None,
    topology: Topology | None = None,
) -> list[str]:
    """Every rule that ``placement`` breaks. Rules that need a model or a topology are left out
    where there is none."""
    found = _missing(placement)
    if not objective.allow_duplicates:
        found += _duplicates(placement)
    if objective.survive_node:
        found += _on_one_node(placement)
    if model is not None:
        found += _other_model(placement, model)
        if objective.keep_groups and not found:
            found += _split_groups(placement, model)
    if topology is not None:
        found += _other_topology(placement, topology)
    if model is not None and topology is not None and not found:
        found += _memory(placement, objective, model, topology)
    return found


def _gpus(placement: Placement, layer: int) -> list[list[int]]:
    """The experts of each GPU in one layer, empty slots left out."""
    row = placement.physical_to_logical[layer].tolist()
    size = len(row) // placement.gpus
    held = [row[first : first + size] for first in range(0, len(row), size)]
    return [[expert for expert in gpu if expert != EMPTY] for gpu in held]


def _missing(placement: Placement) -> list[str]:
    found = []
    for layer in range(placement.layers):
        present = set().union(*_gpus(placement, layer))
        if missing := sorted(set(range(placement.experts)) - present):
            names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            found.append(f"layer {layer}: no slot holds expert {names}: tokens would be lost")
    return found


def _duplicates(placement: Placement) -> list[str]:
    return [
        f"layer {layer}: GPU {gpu} holds expert {expert} {times} times"
        ": a second copy on a GPU serves nothing"
        for layer in range(placement.layers)
        for gpu, held in enumerate(_gpus(placement, layer))
        if len(set(held)) < len(held)
        for expert, times in Counter(held).items()
        if times > 1
    ]


def _on_one_node(placement: Placement) -> list[str]:
    found = []
    per_node = placement.gpus // placement.nodes
    for layer in range(placement.layers):
        nodes: dict[int, set[int]] = {}
        for gpu, held in enumerate(_gpus(placement, layer)):
            for expert in held:
                nodes.setdefault(expert, set()).add(gpu // per_node)
        found += [
            f"layer {layer}: expert {expert} is on node {min(on)} alone: it would be lost with it"
            for expert, on in sorted(nodes.items())
            if len(on) == 1
        ]
    return found


def _split_groups(placement: Placement, model: ModelShape) -> list[str]:
    found = []
    size = model.experts // model.groups
    per_node = placement.gpus // placement.nodes
    for layer in range(placement.layers):
        nodes: dict[int, set[int]] = {}
        for gpu, held in enumerate(_gpus(placement, layer)):
            for expert in held:
                nodes.setdefault(expert // size, set()).add(gpu // per_node)
        found += [
            f"layer {layer}: group {group} is spread over nodes {sorted(on)}"
            ": its experts must stay on one node"
            for group, on in sorted(nodes.items())
            if len(on) > 1
        ]
    return found


def _other_model(placement: Placement, model: ModelShape) -> list[str]:
    have, want = (placement.layers, placement.experts), (model.layers, model.experts)
    if have == want:
        return []
    return [
        f"the placement has {have[0]} layers x {have[1]} experts"
        f" but {model.name} has {want[0]} x {want[1]}: this is another model's plan"
    ]


def _other_topology(placement: Placement, topology: Topology) -> list[str]:
    have, want = (placement.gpus, placement.nodes), (topology.gpus, topology.nodes)
    if have == want:
        return []
    return [
        f"the placement is for {have[0]} GPUs in {have[1]} nodes"
        f" but {topology.name} has {want[0]} in {want[1]}: plan for this topology"
    ]


def _memory(
    placement: Placement, objective: Objective, model: ModelShape, topology: Topology
) -> list[str]:
    room = topology.gpu.hbm_bytes * objective.memory_share
    experts = [0] * placement.gpus
    for layer in range(placement.layers):
        for gpu, held in enumerate(_gpus(placement, layer)):
            experts[gpu] += len(held)
    return [
        f"GPU {gpu} needs {need / 1e9:.1f} GB of weights but may use {room / 1e9:.1f} GB"
        ": use fewer slots or more GPUs"
        for gpu, count in enumerate(experts)
        if (need := count * model.expert_bytes + model.other_bytes) > room
    ]
