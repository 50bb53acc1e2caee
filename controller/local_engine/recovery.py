"""How an engine goes on once devices are gone, with all that was in their memory."""

from collections.abc import Collection, Sequence

from controller.elastic.devices import Devices
from controller.elastic.hmm import Copy, Load
from controller.local_engine.allotment import crowded, new_devices, placed
from controller.local_engine.arrivals import RefusedError
from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.loading import Loaded, load


def without(
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
