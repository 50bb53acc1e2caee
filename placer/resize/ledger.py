"""What becomes of every page: the ledger of a resize, row by row in the order of its steps."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from placer.arrays import BoolArray, IntArray, frozen
from placer.placement import EMPTY, Placement
from placer.resize.devices import Devices
from placer.schedule.copies import between, fewest_each

NONE = -1


class Kind(IntEnum):
    """What becomes of a page, in the order in which it is done; until FREE, whatever serves stays.

    LOAD:  read from the checkpoint, since no device holds it or since that is faster
    COPY:  from another device's memory
    KEEP:  stays where it is, in the same slot of its device: nothing is done
    REMAP: stays where it is and appears in another slot of its device: no byte is copied
    FREE:  nobody needs it after the switch
    """

    LOAD = 0
    COPY = 1
    KEEP = 2
    REMAP = 3
    FREE = 4


class Row(NamedTuple):
    """One page. ``source`` and ``device`` are devices of the hardware, ``was`` and ``slot`` columns
    of the placements before and after; NONE where there is none.

    was: where the page stands on ``source``; NONE if it only comes there by a LOAD or COPY of this
         ledger
    """

    kind: Kind
    layer: int
    expert: int
    source: int
    device: int
    was: int
    slot: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """Rows as arrays, each [rows], by kind, layer and slot; fields as of ``Row``."""

    page_bytes: int
    kind: IntArray
    layer: IntArray
    expert: IntArray
    source: IntArray
    device: IntArray
    was: IntArray
    slot: IntArray

    def __post_init__(self) -> None:
        order = np.lexsort((self.was, self.slot, self.layer, self.kind))
        for name in COLUMNS:
            object.__setattr__(self, name, frozen(getattr(self, name)[order]))

    def __len__(self) -> int:
        return len(self.kind)

    def __iter__(self) -> Iterator[Row]:
        columns = [getattr(self, name).tolist() for name in COLUMNS]
        for kind, layer, expert, source, device, was, slot in zip(*columns, strict=True):
            yield Row(Kind(kind), layer, expert, source, device, was, slot, self.page_bytes)

    def count(self, *kinds: Kind) -> int:
        return int(np.isin(self.kind, kinds).sum())

    def by_device(self, devices: int, *kinds: Kind) -> IntArray:
        """[devices of the hardware] rows of these kinds on each."""
        return np.bincount(self.device[np.isin(self.kind, kinds)], minlength=devices)


COLUMNS = tuple(field.name for field in fields(Ledger)[1:])


def holders(placement: Placement, at: tuple[int, ...], devices: Devices) -> BoolArray:
    """[layers, experts, devices of the hardware] who holds what; dead devices hold nothing."""
    shape = (placement.layers, placement.experts, devices.hardware.gpus)
    held = np.zeros(shape, dtype=np.bool_)
    held[:, :, list(at)] = placement.held_in(placement.gpus)
    held[:, :, list(devices.dead)] = False
    return held


def sources(
    had: BoolArray,
    wanted: BoolArray,
    devices: Devices,
    sent: IntArray,
    from_disk: tuple[bool, bool] = (False, False),
) -> IntArray:
    """[layers, experts, devices] whom each new expert of a device is copied from; NONE where
    it is read from the checkpoint, or nothing comes.

    Copies come from the own node if it holds the expert, else over the network, and the busiest
    source of each link sends as few as possible. An expert that nobody holds is read once, by the
    device that reads least, and copied from there.

    had, wanted: [layers, experts, devices]
    sent:        [links, devices] what else each device sends, in pages
    from_disk:   whether reading the checkpoint is faster than each link
    """
    node, found = devices.hardware.node_of, np.full(had.shape, NONE)
    layer, expert = np.nonzero(wanted.any(axis=2) & ~had.any(axis=2))
    read = np.zeros_like(had)
    read[layer, expert, fewest_each(wanted[layer, expert], node)] = True
    copies = between(had | read, wanted, node, sent)
    source = np.where(np.array(from_disk)[copies.link], NONE, copies.source)
    found[copies.layer, copies.expert, copies.gpu] = source
    return found


def ledger(
    before: Placement, after: Placement, devices: Devices, source: IntArray, page_bytes: int
) -> Ledger:
    """A row for each filled slot of ``after`` and for each page that goes.

    source: [layers, experts, devices], as ``sources`` finds
    """
    page, table = _pages(before, devices), after.physical_to_logical
    layer, slot = np.nonzero(table != EMPTY)
    expert, device = table[layer, slot], np.array(devices.after)[slot // after.slots_per_gpu]
    where = (layer, expert, device)
    place = _same_place(before, after, devices)[layer, slot]
    was = np.where(place == NONE, page[where], place)

    arrives, whence = was == NONE, np.where(was == NONE, source[where], device)
    kind = np.where(place == NONE, Kind.REMAP, Kind.KEEP)
    kind[arrives] = np.where(whence == NONE, Kind.LOAD, Kind.COPY)[arrives]
    # A second slot of the device shows the page that the first one gets.
    again = arrives.copy()
    again[np.unique(np.ravel_multi_index(where, page.shape), return_index=True)[1]] = False
    kind[again], whence[again] = Kind.REMAP, device[again]
    copied = kind == Kind.COPY
    was[copied] = page[layer[copied], expert[copied], whence[copied]]

    old = before.physical_to_logical
    goes = old != EMPTY
    goes &= ~np.isin(devices.before, list(devices.dead))[before.gpu_of_slot]
    stays = ~arrives
    goes[layer[stays], was[stays]] = False
    left, left_slot = np.nonzero(goes)
    left_device = np.array(devices.before)[before.gpu_of_slot[left_slot]]
    columns = (
        (kind, np.full(len(left), Kind.FREE)),
        (layer, left),
        (expert, old[left, left_slot]),
        (whence, left_device),
        (device, left_device),
        (was, left_slot),
        (slot, np.full(len(left), NONE)),
    )
    return Ledger(page_bytes, *(np.concatenate(pair) for pair in columns))


def _pages(before: Placement, devices: Devices) -> IntArray:
    """[layers, experts, devices] the first slot of ``before`` that holds each expert there, or
    NONE; dead devices hold nothing."""
    table, slots = before.physical_to_logical, before.slots
    found = np.full((before.layers, before.experts, devices.hardware.gpus), slots)
    layer, slot = np.nonzero(table != EMPTY)
    device = np.array(devices.before)[before.gpu_of_slot[slot]]
    np.minimum.at(found, (layer, table[layer, slot], device), slot)
    found[:, :, list(devices.dead)] = slots
    return np.where(found == slots, NONE, found)


def _same_place(before: Placement, after: Placement, devices: Devices) -> IntArray:
    """[layers, slots after] the slot of ``before`` at the same place of the same device, if it has
    the same expert, or else NONE."""
    found = np.full(after.physical_to_logical.shape, NONE)
    both = min(before.slots_per_gpu, after.slots_per_gpu)
    rank_before = {device: rank for rank, device in enumerate(devices.before)}
    for rank, device in enumerate(devices.after):
        if device in rank_before:
            old = rank_before[device] * before.slots_per_gpu + np.arange(both)
            new = rank * after.slots_per_gpu + np.arange(both)
            experts = after.physical_to_logical[:, new]
            same = (before.physical_to_logical[:, old] == experts) & (experts != EMPTY)
            found[:, new] = np.where(same, old, NONE)
    return found
