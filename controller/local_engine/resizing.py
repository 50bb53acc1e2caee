"""A change of width on this engine: ElasticMoE's scale-up and scale-down, with sequences in flight.

Whatever takes long goes on beside serving: standbys attach to the arenas, and memory processes copy
what the new ranks need. Between two steps the ranks build their second ranges; between two later
ones sequences whose rank goes are handed over with their keys and values, and the new group serves.
What the old width needed is freed last, so that until the switch there is nothing to undo.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controller.elastic.devices import Devices
from controller.elastic.hmm import Copy, CopySeats, Filled, Forget
from controller.local_engine.allotment import new_devices, placed, sources
from controller.local_engine.arrivals import RefusedError
from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.loading import Loaded, hold, load
from controller.local_engine.model.weights import ITEM, Sizes
from controller.local_engine.ranks.exchange import seat_shape
from controller.local_engine.ranks.group import Member, Ranks
from controller.local_engine.requests import Batch
from placer.placement import Placement

BATCH = 32  # pages that are copied before somebody else may ask a memory process


@dataclass(eq=False)
class _Change:
    """after: the map to come; order: its ranks' devices; new: those that come, with their ranks"""

    after: ExpertMap
    order: list[int]
    new: list[Member]
    copies: Mapping[int, list[tuple[int, int, Filled]]]  # by device: source, its page, page here
    loads: Mapping[int, list[Filled]]  # by device
    retired: Sequence[Member] = ()
    is_prepared: bool = False
    is_done: bool = False


class Resizing:
    """What is staged of it. rate: bytes a second that a device may copy; 0 for as many as can be"""

    def __init__(
        self,
        ranks: Ranks,
        devices: Devices,
        batch: Batch,
        sizes: Sizes,
        loaded: Loaded,
        rate: float,
    ) -> None:
        self._ranks, self._devices, self._batch = ranks, devices, batch
        self._sizes, self._loaded, self._rate = sizes, loaded, rate
        self._change: _Change | None = None
        self.handed_over_bytes = 0

    def stage(self, after: Placement) -> None:
        """Allot pages, and attach standbys to new devices. Raises RefusedError, and leaves nothing
        then."""
        now, order = self._ranks.served, self._ranks.order
        stay = order[: after.gpus]
        came = new_devices(order, after.gpus - len(stay))
        served, missing = placed(now, after, order, [*stay, *came], self._devices.layout.pages)
        copies, loads = sources(now, order, missing)
        self._devices.add(came)
        try:
            new = self._ranks.enlist(came)
        except BaseException:
            self.give_back()
            raise
        self._change = _Change(served, [*stay, *came], new, copies, loads)

    @property
    def is_staged(self) -> bool:
        return self._change is not None

    def transfer(self) -> int:
        """Returns the bytes that went between devices."""
        change = self._staged()
        copied = self._transfer_dense([one.device for one in change.new])
        load(self._devices, change.loads, self._loaded)
        waiting = {device: list(rows) for device, rows in change.copies.items()}
        while any(waiting.values()):
            messages: dict[int, tuple[object, int | None]] = {}
            for device, rows in waiting.items():
                if not rows:
                    continue
                giver = rows[0][0]
                now = [one for one in rows if one[0] == giver][:BATCH]
                waiting[device] = [one for one in rows if one not in now]
                pages = [(page, filled) for _, page, filled in now]
                message = Copy(self._devices.name(giver), False, pages, self._rate)
                messages[device] = message, giver
            copied += sum(self._devices.ask_all(messages).values())
        return copied

    def _transfer_dense(self, came: Sequence[int]) -> int:
        """To devices that are new."""
        first = self._ranks.order[0]
        dense = Copy(self._devices.name(first), True, [], self._rate)
        return sum(self._devices.ask_all(dict.fromkeys(came, (dense, first))).values())

    def prepare(self) -> None:
        """Between two steps."""
        change = self._staged()
        self._ranks.prepare(change.order, change.new, change.after)
        change.is_prepared = True

    def switch(self) -> None:
        """Between two steps: from here on there is no way back but another change."""
        change = self._staged()
        if change.is_done:
            return
        if not change.is_prepared:
            raise RefusedError("the ranks are not ready: transfer first")
        before = self._ranks.order
        moves = self._batch.moves(change.after.ranks)
        by_pair = defaultdict(list)
        for move in moves:
            by_pair[before[move.rank], change.order[move.to]].append(move)
        self.handed_over_bytes = 0
        *_, _, size = shape = seat_shape(self._sizes)
        for (source, device), group in by_pair.items():
            seats = [(one.seat, one.to_seat, one.running.computed) for one in group]
            rows = int(np.prod(shape[:-2]))
            message = CopySeats(self._devices.name(source), seats, rows, size * ITEM)
            self.handed_over_bytes += self._devices.ask(device, message, source)
        self._batch.resize(change.after.ranks, moves)
        change.is_done, change.retired = True, self._ranks.leaving()
        self._ranks.switch()

    def release(self) -> None:
        change = self._staged()
        if not change.is_done:
            raise RefusedError("the old ranks still serve: switch first")
        self._ranks.dismiss(change.retired)
        change.retired = ()
        self.give_back()

    def discard(self) -> None:
        """What was staged, as it is too late for that or not done; ``Ranks.forget`` comes first."""
        change = self._staged()
        if change.is_done:
            self.release()
        else:
            self._ranks.dismiss(change.new)
            self.give_back()
        self._change = None

    def lose(self) -> None:
        """What was staged is void, and so may be those that were to take part."""
        if (change := self._change) is not None:
            self._ranks.dismiss(change.retired if change.is_done else change.new)
        self._change = None

    def _staged(self) -> _Change:
        if self._change is None:
            raise RefusedError("the change that is staged has no other width")
        return self._change

    def give_back(self) -> None:
        """The memory of devices that no rank has."""
        used = self._ranks.order
        for name in self._devices.retire(used):
            for device in used:
                self._devices.ask(device, Forget(name))
        hold(self._devices, self._ranks.served, used)
