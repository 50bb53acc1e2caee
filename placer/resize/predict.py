"""Bytes and seconds of a resize."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from placer.arrays import IntArray
from placer.cost.moves import LEFT_BY_SERVING, rates
from placer.placement import EMPTY, Placement
from placer.resize.devices import Devices
from placer.resize.engine import Engine
from placer.resize.ledger import Kind, Ledger
from placer.resize.whole import Part
from placer.schedule.copies import LOCAL, NETWORK


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of a resize's steps, which follow each other, each the busiest device's.

    disk:     what is read from the checkpoint
    transfer: copies of experts and dense weights, beside serving
    attach:   the new range of pages is mapped beside the old one
    switch:   nothing is served: sequences are handed over with their KV
    """

    disk: float
    transfer: float
    attach: float
    switch: float

    @property
    def total(self) -> float:
        return self.disk + self.transfer + self.attach + self.switch


def link_bytes(devices: Devices, experts: Ledger | None, parts: Iterable[Part]) -> IntArray:
    """[links, out and in, devices of the hardware] bytes that are copied."""
    copies = [(part.source, part.device, part.bytes) for part in parts if part.kind == Kind.COPY]
    rows = np.array(copies, dtype=np.int64).reshape(-1, 3)
    if experts is not None:
        of_experts = np.stack([experts.source, experts.device], axis=1)[experts.kind == Kind.COPY]
        size = np.full((len(of_experts), 1), experts.page_bytes)
        rows = np.concatenate([rows, np.hstack([of_experts, size])])
    node = devices.hardware.node_of
    found = np.zeros((2, 2, devices.hardware.gpus), dtype=np.int64)
    link = np.where(node[rows[:, 0]] == node[rows[:, 1]], LOCAL, NETWORK)
    for direction in (0, 1):
        np.add.at(found[:, direction], (link, rows[:, direction]), rows[:, 2])
    return found


def seconds(
    engine: Engine, devices: Devices, experts: Ledger, dense: Iterable[Part], kv: Iterable[Part]
) -> Seconds:
    """Both links and directions work at the same time. Copies beside serving have the share of a
    link that ``moves.rates`` leaves, those of the switch all of it."""
    speeds, hardware = engine.speeds, devices.hardware
    dense = tuple(dense)
    read = experts.by_device(hardware.gpus, Kind.LOAD) * engine.expert_bytes
    for part in dense:
        read[part.device] += part.bytes * (part.kind == Kind.LOAD)
    busy = np.array(rates(hardware))
    beside = link_bytes(devices, experts, dense).max(axis=(1, 2))
    alone = link_bytes(devices, None, kv).max(axis=(1, 2))
    mapped = experts.by_device(hardware.gpus, Kind.LOAD, Kind.COPY, Kind.REMAP)
    return Seconds(
        disk=float(read.max() / speeds.disk_bytes_per_s),
        transfer=float((beside / busy).max()),
        attach=speeds.attach_s + float(mapped.max()) * speeds.page_s,
        switch=speeds.switch_s + float((alone / (busy / LEFT_BY_SERVING)).max()),
    )


def peak_bytes(engine: Engine, devices: Devices, before: Placement, experts: Ledger) -> IntArray:
    """[devices of the hardware] at the switch, when the old and the new range of pages both exist:
    each page counted once, dense weights, and what is set aside for KV."""
    found = experts.by_device(devices.hardware.gpus, Kind.LOAD, Kind.COPY)
    had = (before.physical_to_logical != EMPTY).sum(axis=0).reshape(before.gpus, -1).sum(axis=1)
    found[list(devices.before)] += had
    found *= engine.expert_bytes
    found[list({*devices.before, *devices.after})] += engine.dense_bytes + engine.kv_room
    found[list(devices.dead)] = 0
    return found
