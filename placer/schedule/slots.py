"""The slots and the scratch memory between rounds: what may be overwritten, and when.

A slot that loses its expert is *open*, free to be overwritten, as soon as nobody will copy from it
any more and its expert is safe. An expert is safe if some GPU keeps it. If none does, one of the
slots that copies are made from, the *keeper*, waits until the first copy of it serves. Open slots
stay open, so no two decisions can take the last two replicas of an expert.

A copy that arrives where no slot is open is *held* in scratch memory. Held copies can wait for each
other in a ring (two experts that change places, say): they are committed together. A GPU's last
scratch slot is kept for rings, which pass each GPU once, so with one such slot no schedule gets
stuck. For take a layer in which no copy finds an open slot. Each slot that is to be overwritten
waits for a copy of its own, and there are no more copies under way than such slots. So it waits for
one copy exactly, as many leave each GPU as come to it, and going on from GPU to GPU with these
copies leads round in a ring.
"""

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from placer.arrays import BoolArray
from placer.placement import EMPTY, Placement
from placer.schedule.copies import Copies
from placer.schedule.values import Transfer

Seat = tuple[int, int]  # layer, gpu
Ways = dict[int, list[tuple[int, int]]]  # by GPU: copies that free a slot there, where they arrive


class Slots:
    """The state between rounds. A copy is named by its index.

    opened, held: [layers, gpus] open slots, and held copies
    sends: [layers, experts, gpus] copies still to be made from there
    room:  [gpus] free scratch slots
    slot:  [copies] where each copy goes, EMPTY as long as that is open
    table: [layers, slots] the experts that serve
    """

    def __init__(self, before: Placement, after: Placement, copies: Copies, scratch: int) -> None:
        self.opened = np.zeros((before.layers, before.gpus), dtype=np.int64)
        self.held = np.zeros_like(self.opened)
        self.sends = np.zeros((before.layers, before.experts, before.gpus), dtype=np.int64)
        np.add.at(self.sends, (copies.layer, copies.expert, copies.source), 1)
        self.room = np.full(before.gpus, scratch)
        self.slot = np.full(len(copies), EMPTY)
        self.table = before.physical_to_logical.copy()
        self._size = before.slots_per_gpu
        self._layer = copies.layer
        columns = (copies.layer, copies.expert, copies.source, copies.gpu)
        self._copies = list(zip(*(column.tolist() for column in columns), strict=True))
        self._open: dict[Seat, list[int]] = defaultdict(list)
        self._waiting: dict[tuple[int, int, int], int] = {}  # layer, expert, gpu -> slot
        self._keeper: dict[tuple[int, int], int] = {}  # layer, expert -> gpu
        self._sent: set[tuple[int, int]] = set()  # layer, expert whose keeper has sent all
        self._in_scratch: dict[Seat, list[int]] = defaultdict(list)
        self._begun = np.zeros(len(copies), dtype=np.bool_)
        self._rings: list[list[int]] = []  # joined and not yet committed
        self._changed: set[int] = set()  # layers in which there may be a ring that was none before
        self._landing: list[int] = []  # copies of this round that go to open slots
        self._borrowed: list[int] = []  # GPUs whose scratch memory these use until the round ends
        self._sort_slots(before, after)

    def _sort_slots(self, before: Placement, after: Placement) -> None:
        """Which slots keep their expert, which are open and which must wait."""
        stay = np.minimum(before.copies, after.copies)
        gone = stay == 0
        safe = ~gone.all(axis=2)
        for layer, expert, source, _ in self._copies:
            if not safe[layer, expert]:
                known = self._keeper.get((layer, expert), source)
                self._keeper[layer, expert] = min(known, source)
        for layer, row in enumerate(before.physical_to_logical.tolist()):
            for slot, expert in enumerate(row):
                key = (layer, expert, slot // self._size)
                if expert != EMPTY and stay[key]:
                    stay[key] -= 1
                elif expert != EMPTY and gone[key] and self.sends[key] and key not in self._waiting:
                    self._waiting[key] = slot
                else:
                    self._set_open(layer, key[2], slot)

    def begin(self, copy: int) -> tuple[int, int] | None:
        """Start a copy; what had to be dropped for it, if its GPU has no scratch memory left."""
        layer, _, _, gpu = self._copies[copy]
        self._begun[copy] = True
        if self.slot[copy] != EMPTY:  # in a ring
            self.room[gpu] -= 1
            return None
        if not self._open[layer, gpu]:
            self.room[gpu] -= 1
            self.held[layer, gpu] += 1
            self._in_scratch[layer, gpu].append(copy)
            self._changed.add(layer)
            return None
        slot = self._take(layer, gpu)
        self.slot[copy] = slot
        self._landing.append(copy)
        if self.table[layer, slot] == EMPTY:
            return None
        if self.room[gpu]:
            self.room[gpu] -= 1
            self._borrowed.append(gpu)
            return None
        self.table[layer, slot] = EMPTY
        return layer, slot

    def finish(self, started: list[int]) -> list[int]:
        """The copies that can be committed when those that started have arrived."""
        for copy in started:
            layer, expert, source, _ = self._copies[copy]
            self.sends[layer, expert, source] -= 1
            if not self.sends[layer, expert, source]:
                self._all_sent(layer, expert, source)
        committed = self._landing
        self._landing = []
        np.add.at(self.room, self._borrowed, 1)
        self._borrowed = []
        for copy in committed:
            self._serve(copy)
        while more := self._into_open_slots() + self._around_rings():
            committed += more
        return committed

    def rings(self, waiting: BoolArray) -> Iterator[list[int]]:
        """Rings of held and waiting copies; no GPU is in two of them.

        waiting: [copies] those that have not begun and may
        """
        busy: set[int] = set()
        for layer in np.unique(self._layer[waiting]).tolist():
            ways = self._ways(layer)
            for copy in np.nonzero(waiting & (self._layer == layer))[0].tolist():
                _, expert, source, gpu = self._copies[copy]
                key = (layer, expert, source)
                if key in self._waiting and self.sends[key] == 1:
                    ways[source].append((copy, gpu))
            while ring := _ring({gpu: ways[gpu] for gpu in ways if gpu not in busy}):
                busy |= {self._copies[copy][3] for copy in ring}
                yield ring

    def join(self, ring: list[int]) -> None:
        """Give each copy of a ring the slot that the next one frees, to be committed together."""
        for copy, following in zip(ring, ring[1:] + ring[:1], strict=True):
            layer, expert, _, _ = self._copies[following]
            gpu = self._copies[copy][3]
            self.slot[copy] = self._waiting.pop((layer, expert, gpu))
            self._sent.discard((layer, expert))
            if self._begun[copy]:
                self._in_scratch[layer, gpu].remove(copy)
                self.held[layer, gpu] -= 1
        self._rings.append(ring)

    def tidy(self, after: Placement) -> tuple[list[tuple[int, int]], list[Transfer]]:
        """What is left when every copy serves: slots to empty, and second copies inside a GPU."""
        drops, twins = [], []
        stands, goal = self.table.tolist(), after.physical_to_logical.tolist()
        left = ((seat, slots) for seat, slots in self._open.items() if slots)  # mostly none
        for (layer, gpu), slots in sorted(left):
            here = range(gpu * self._size, (gpu + 1) * self._size)
            wanted = Counter([goal[layer][slot] for slot in here])
            wanted.subtract([stands[layer][slot] for slot in here if slot not in slots])
            for slot, expert in zip(slots, wanted.elements(), strict=True):
                if self.table[layer, slot] != EMPTY:
                    drops.append((layer, slot))
                self.table[layer, slot] = expert
                if expert != EMPTY:
                    twins.append(Transfer(layer, expert, gpu, gpu, slot))
        return drops, twins

    def _set_open(self, layer: int, gpu: int, slot: int) -> None:
        insort(self._open[layer, gpu], slot)
        self.opened[layer, gpu] += 1

    def _take(self, layer: int, gpu: int) -> int:
        self.opened[layer, gpu] -= 1
        return self._open[layer, gpu].pop(0)

    def _all_sent(self, layer: int, expert: int, gpu: int) -> None:
        if (layer, expert, gpu) not in self._waiting:
            return
        if self._keeper.get((layer, expert)) == gpu:
            self._sent.add((layer, expert))
            self._changed.add(layer)
        else:
            self._set_open(layer, gpu, self._waiting.pop((layer, expert, gpu)))

    def _serve(self, copy: int) -> None:
        layer, expert, _, _ = self._copies[copy]
        self.table[layer, self.slot[copy]] = expert
        keeper = self._keeper.pop((layer, expert), EMPTY)
        if (layer, expert) in self._sent:
            self._sent.remove((layer, expert))
            self._set_open(layer, keeper, self._waiting.pop((layer, expert, keeper)))

    def _into_open_slots(self) -> list[int]:
        committed = []
        for layer, gpu in np.argwhere((self.held > 0) & (self.opened > 0)).tolist():
            while self._in_scratch[layer, gpu] and self._open[layer, gpu]:
                copy = self._in_scratch[layer, gpu].pop(0)
                self.held[layer, gpu] -= 1
                self.room[gpu] += 1
                self.slot[copy] = self._take(layer, gpu)
                self._serve(copy)
                committed.append(copy)
        return committed

    def _around_rings(self) -> list[int]:
        changed, self._changed = self._changed, set()
        for layer in sorted(changed):
            while ring := _ring(self._ways(layer)):
                self.join(ring)
        closed = [ring for ring in self._rings if self._begun[ring].all()]
        self._rings = [ring for ring in self._rings if ring not in closed]
        committed = [copy for ring in closed for copy in ring]
        for copy in committed:
            self.room[self._copies[copy][3]] += 1
            self._serve(copy)
        return committed

    def _ways(self, layer: int) -> Ways:
        """The held copies of a layer that free a slot as soon as they serve."""
        ways: Ways = defaultdict(list)
        for gpu in np.nonzero(self.held[layer])[0].tolist():
            for copy in self._in_scratch[layer, gpu]:
                expert = self._copies[copy][1]
                if (layer, expert) in self._sent:
                    ways[self._keeper[layer, expert]].append((copy, gpu))
        return ways


def _ring(ways: Ways) -> list[int]:
    """Copies each of which frees a slot where the one before it arrives; [] if there are none."""
    size = -1
    while size != len(ways):
        size = len(ways)
        ways = {gpu: on for gpu in ways if (on := [way for way in ways[gpu] if way[1] in ways])}
    if not ways:
        return []
    path: dict[int, int] = {}
    gpu = min(ways)
    while gpu not in path:
        copy, onward = ways[gpu][0]
        path[gpu] = copy
        gpu = onward
    return list(path.values())[list(path).index(gpu) :]
