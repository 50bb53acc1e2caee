"""What moves as a whole: each device's dense weights, and the KV pages of sequences in flight."""

from typing import NamedTuple

import numpy as np

from placer.arrays import IntArray
from placer.errors import PlacementError
from placer.plan import Infeasible
from placer.resize.devices import Devices
from placer.resize.engine import Engine
from placer.resize.ledger import NONE, Kind
from placer.schedule.copies import LOCAL, NETWORK, nearest


class Part(NamedTuple):
    """number: the shard of the dense weights, or which of the engine's sequences in flight;
    source: NONE for a LOAD"""

    kind: Kind
    number: int
    source: int
    device: int
    bytes: int


def dense(engine: Engine, devices: Devices, from_disk: tuple[bool, bool]) -> tuple[Part, ...]:
    """Every device keeps its shard, and new ones copy theirs from the nearest holder, the busiest
    of which sends as few as possible.

    from_disk: whether reading the checkpoint is faster than the local link, and than the network
    """
    size, shard = engine.dense_bytes, devices.shard
    new = np.array(devices.new, dtype=np.intp)
    holds = np.isin(np.arange(devices.hardware.gpus), devices.givers)
    candidates = holds & (shard == shard[new][:, None])
    found = candidates.any(axis=1)
    source = np.full(len(new), NONE)
    source[found], link = nearest(candidates[found], new[found], devices.hardware.node_of)
    source[np.flatnonzero(found)[np.array(from_disk)[link]]] = NONE
    loads = [
        Part(Kind.LOAD if whence == NONE else Kind.COPY, int(shard[device]), whence, device, size)
        for device, whence in zip(new.tolist(), source.tolist(), strict=True)
    ]
    keeps = [
        Part(Kind.KEEP, int(shard[device]), device, device, size)
        for device in devices.after
        if device in devices.before
    ]
    frees = [
        Part(Kind.FREE, int(shard[device]), device, device, size)
        for device in devices.givers
        if device not in devices.after
    ]
    return tuple(sorted([*loads, *keeps, *frees]))


def sent(parts: tuple[Part, ...], devices: Devices, page_bytes: int) -> IntArray:
    """[links, devices of the hardware] pages that parts keep each device's links busy for."""
    pages = np.zeros((2, devices.hardware.gpus), dtype=np.int64)
    node = devices.hardware.node_of
    for part in parts:
        if part.kind == Kind.COPY:
            link = LOCAL if node[part.source] == node[part.device] else NETWORK
            pages[link, part.source] += -(-part.bytes // page_bytes)
    return pages


def kv(engine: Engine, devices: Devices) -> tuple[Part, ...] | Infeasible:
    """Sequences stay with their group; those of groups that go, the largest first, go to the group
    with the fewest bytes of KV, to the nearest of several. Groups that come begin empty.

    Infeasible if no group has room for one of them. (A packing that fits might be missed.)
    """
    before, after = devices.groups_before, devices.groups_after
    node = devices.hardware.node_of
    used = dict.fromkeys(after, 0)
    parts, leaving = [], []
    for number, sequence in enumerate(engine.in_flight):
        if not 0 <= sequence.group < len(before):
            raise PlacementError(
                f"sequence {number} is of group {sequence.group} but there are {len(before)} groups"
                ": count them from 0"
            )
        group = before[sequence.group]
        if devices.dead.intersection(group):
            raise PlacementError(
                f"sequence {number} is on devices {group}, of which one is dead: leave it out, its"
                " request must be replayed"
            )
        if group in used:
            used[group] += sequence.bytes
            parts += [Part(Kind.KEEP, number, at, at, sequence.bytes) for at in group]
        else:
            leaving.append((sequence.bytes, number, group))
    free = engine.kv_room * len(after) - sum(used.values())
    for size, number, group in sorted(leaving, key=lambda one: (-one[0], one[1])):
        to = min(after, key=lambda one: (used[one], node[one[0]] != node[group[0]]))
        if used[to] + size > engine.kv_room:
            whole = sum(size for size, *_ in leaving)
            return Infeasible(
                f"sequence {number} of devices {group} has {size / 1e9:.3g} GB of KV on each and no"
                f" group has room for it after the change: {whole / 1e9:.3g} GB leave,"
                f" {free / 1e9:.3g} GB are free: let requests finish first, or keep more ranks"
            )
        used[to] += size
        pairs = zip(group, to, strict=True)
        parts += [Part(Kind.COPY, number, whence, at, size) for whence, at in pairs]
    return tuple(sorted(parts))
