"""How an engine goes on once devices are gone, with all that was in their memory."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence

from controller.elastic.devices import Devices, LostDeviceError
from controller.elastic.hmm import Copy, Load
from controller.local_engine.allotment import crowded, new_devices, placed
from controller.local_engine.arrivals import RefusedError
from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.loading import Loaded, load
from controller.local_engine.page_moves import Migration
from controller.local_engine.ranks.group import EngineError, Ranks

SUPERVISE_S = 0.5  # how often an idle engine looks after its ranks, and any after its devices


def look_after(devices: Devices, closed: threading.Event, lost: Callable[[int], None]) -> None:
    """Steps need no memory process, and may leave no time to look after them; but the death of one
    must not wait for another's, since both together lose an arena."""
    while not closed.wait(SUPERVISE_S):
        try:
            devices.supervise()
        except LostDeviceError as error:
            lost(error.device)


def survive(
    gone: Collection[int], ranks: Ranks, devices: Devices, migration: Migration, loaded: Loaded
) -> Iterator[list[int]]:
    """Go on without these devices, and without those that are lost meanwhile; yields ranks that
    were lost, each time that there is a group without them.

    The others hold their experts, read anew from the checkpoint where no replica is left. What was
    staged is void. Raises EngineError if nobody can go on.
    """
    while gone := [device for device in gone if device in devices]:
        before = ranks.order
        lost = [before.index(device) for device in gone if device in before]
        migration.forget()
        for device in gone:
            devices.remove(device)
        try:
            if lost:
                ranks.go_on(*_without(ranks.served, before, lost, devices, loaded))
                yield lost
            else:
                ranks.go_on(before, ranks.served)
            migration.give_back()
        except LostDeviceError as another:
            gone = [another.device]
        except RefusedError as error:
            raise EngineError(str(error)) from error


def _without(
    now: ExpertMap, before: Sequence[int], gone: Collection[int], devices: Devices, loaded: Loaded
) -> tuple[list[int], ExpertMap]:
    """Devices that go on, and what they serve, once those of some ranks are gone.

    before: the devices, by rank; gone: ranks

    The others take over: in every layer, experts that nobody has any more go where the fewest are,
    and are read from the checkpoint. If their arenas have no room for that, new devices come in
    place of those that are gone. Raises RefusedError if the checkpoint was changed meanwhile.
    """
    left = [rank for rank in range(now.ranks) if rank not in gone]
    order = [before[rank] for rank in left]
    pages = devices.layout.pages
    try:
        served, missing = placed(now, crowded(now, left), before, order, pages)
    except RefusedError:
        new = iter(new_devices(before, len(gone)))
        order = [next(new) if rank in gone else one for rank, one in enumerate(before)]
        came = [order[rank] for rank in gone]
        devices.add(came)
        source = order[left[0]] if left else None
        dense = Load(True, []) if source is None else Copy(devices.name(source), True, [], 0.0)
        devices.ask_all(dict.fromkeys(came, (dense, source)))
        served, missing = placed(now, now.placement, before, order, pages)
    load(devices, missing, loaded)
    return order, served
