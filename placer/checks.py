"""Whether a placement may be applied. Trusts nobody: shares no code with the optimizers.

``violations`` returns one sentence a fault; an empty list is a pass.
"""

from collections import Counter

import numpy as np

from placer.arrays import BoolArray, IntArray
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


def _missing(placement: Placement) -> list[str]:
    found = []
    absent = ~_held(placement.physical_to_logical, 1, placement.experts)[:, 0]
    for layer in np.flatnonzero(absent.any(axis=1)).tolist():
        missing = np.flatnonzero(absent[layer]).tolist()
        names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        found.append(f"layer {layer}: no slot holds expert {names}: tokens would be lost")
    return found


def _duplicates(placement: Placement) -> list[str]:
    held = placement.physical_to_logical.reshape(placement.layers, placement.gpus, -1)
    ordered = np.sort(held, axis=2)
    twice = (ordered[:, :, 1:] == ordered[:, :, :-1]) & (ordered[:, :, 1:] != EMPTY)
    return [
        f"layer {layer}: GPU {gpu} holds expert {expert} {times} times"
        ": a second copy on a GPU serves nothing"
        for layer, gpu in np.argwhere(twice.any(axis=2)).tolist()
        for expert, times in Counter(held[layer, gpu].tolist()).items()
        if expert != EMPTY and times > 1
    ]


def _on_one_node(placement: Placement) -> list[str]:
    on = _held(placement.physical_to_logical, placement.nodes, placement.experts)
    return [
        f"layer {layer}: expert {expert} is on node {on[layer, :, expert].argmax()} alone"
        ": it would be lost with it"
        for layer, expert in np.argwhere(on.sum(axis=1) == 1).tolist()
    ]


def _split_groups(placement: Placement, model: ModelShape) -> list[str]:
    group = placement.physical_to_logical // (model.experts // model.groups)  # EMPTY stays
    on = _held(group, placement.nodes, model.groups)
    return [
        f"layer {layer}: group {group} is spread over nodes "
        f"{np.flatnonzero(on[layer, :, group]).tolist()}: its experts must stay on one node"
        for layer, group in np.argwhere(on.sum(axis=1) > 1).tolist()
    ]


def _held(content: IntArray, parts: int, count: int) -> BoolArray:
    """[layers, parts, count] whether each of so many equal parts of the slots has each content.

    content: [layers, slots] numbers below ``count``, or EMPTY
    """
    layers, slots = content.shape
    found = np.zeros((layers, parts, count + 1), dtype=np.bool_)  # the last is EMPTY
    found[np.arange(layers)[:, None], np.arange(slots) * parts // slots, content] = True
    return found[:, :, :count]


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
    filled = placement.physical_to_logical != EMPTY
    experts = filled.reshape(placement.layers, placement.gpus, -1).sum(axis=(0, 2))
    return [
        f"GPU {gpu} needs {need / 1e9:.1f} GB of weights but may use {room / 1e9:.1f} GB"
        ": use fewer slots or more GPUs"
        for gpu, count in enumerate(experts.tolist())
        if (need := count * model.expert_bytes + model.other_bytes) > room
    ]
