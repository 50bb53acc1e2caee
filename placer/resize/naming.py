"""Which device gets which content of a target, and where on it the experts stand."""

import numpy as np

from placer.arrays import BoolArray, IntArray
from placer.labels import assign
from placer.placement import EMPTY, Placement
from placer.resize.devices import Devices
from placer.schedule import Relabel, match_slots


def carried(before: Placement, devices: Devices, nodes: int, size: int) -> Placement:
    """What the devices after hold already, in the first ``size`` slots of each; new ones are empty.

    nodes: of the devices after
    """
    ranks = {device: rank for rank, device in enumerate(devices.before)}
    held = before.physical_to_logical.reshape(before.layers, before.gpus, -1)[:, :, :size]
    table = np.full((before.layers, len(devices.after), size), EMPTY)
    for rank, device in enumerate(devices.after):
        if device in ranks:
            table[:, rank, : held.shape[2]] = held[:, ranks[device]]
    flat = table.reshape(before.layers, -1)
    return Placement(flat, before.experts, len(devices.after), nodes)


def named(
    before: Placement, after: Placement, devices: Devices, had: BoolArray, relabel: Relabel
) -> Placement:
    """``after`` with the labels that need the fewest copies and, of these, the fewest over the
    network; what stays on its device keeps its slot if there still is one of that number.

    Exact: what a content costs on a device does not depend on where the others go, so it is an
    assignment. GPUs that share a node go on doing so.

    had: [layers, experts, devices of the hardware]
    """
    table = after.physical_to_logical.reshape(after.layers, after.gpus, -1)
    if relabel != "never":
        cost = _cost(after, devices, had)
        if relabel == "once":
            cost = cost.sum(axis=0, keepdims=True)
        # Of equals, most devices keep their rank's content.
        worth = np.eye(after.gpus, dtype=np.int64) - cost * (after.gpus + 1)
        contents = assign(worth, after.nodes)
        table = np.take_along_axis(table, contents[:, :, None], axis=1)
    flat = table.reshape(after.layers, -1)
    target = Placement(flat, after.experts, after.gpus, after.nodes)
    return match_slots(carried(before, devices, after.nodes, after.slots_per_gpu), target)


def _cost(after: Placement, devices: Devices, had: BoolArray) -> IntArray:
    """[layers, devices, contents] the copies that each device needs for each content of ``after``;
    those over the network count a little more."""
    at, node_of = list(devices.after), devices.hardware.node_of
    nodes = range(devices.hardware.nodes)
    in_node = np.stack([had[:, :, node_of == node].any(axis=2) for node in nodes], axis=2)
    wanted = after.held_in(after.gpus).astype(np.float32)
    copies, network = (
        np.rint(np.swapaxes(~held, 1, 2).astype(np.float32) @ wanted).astype(np.int64)
        for held in (had[:, :, at], in_node[:, :, node_of[at]])
    )
    return copies * (after.physical_to_logical.size + 1) + network
