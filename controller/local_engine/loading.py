"""What is read from the checkpoint, whether that is still what it was, and where memory is held."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from controller.elastic.devices import Devices
from controller.elastic.hmm import Copy, Filled, Hold, Load
from controller.local_engine.arrivals import RefusedError
from controller.local_engine.expert_map import ExpertMap


class Loaded(NamedTuple):
    """Digests of what was read from the checkpoint. experts: [layers][experts]"""

    dense: str
    experts: list[list[str]]


def read_all(devices: Devices, served: ExpertMap, order: Sequence[int]) -> Loaded:
    """Each weight is read once; what several devices need is copied from the first."""
    pages: dict[int, list[Filled]] = {device: [] for device in order}
    first: dict[tuple[int, int], tuple[int, int]] = {}
    again: list[tuple[int, int, int, Filled]] = []
    for rank, device in enumerate(order):
        for one in served.filled(rank):
            if (what := (one.layer, one.expert)) in first:
                again.append((device, *first[what], one))
            else:
                first[what] = device, one.page
                pages[device].append(one)
    found = devices.ask_all({at: (Load(at == order[0], pages[at]), None) for at in order})
    dense = found[order[0]].pop(0)
    experts = [[""] * served.experts for _ in served.table]
    for device, digests in found.items():
        for one, digest in zip(pages[device], digests, strict=True):
            experts[one.layer][one.expert] = digest
    name = devices.name(order[0])
    devices.ask_all({at: (Copy(name, True, [], 0.0), order[0]) for at in order[1:]})
    for device, source, page, one in again:
        devices.ask(device, Copy(devices.name(source), False, [(page, one)], 0.0), source)
    return Loaded(dense, experts)


def hold(devices: Devices, served: ExpertMap, order: Sequence[int]) -> None:
    """Have memory behind what serves, and on devices that wait behind what the next wider group
    would give one of them; nowhere else."""
    each = -(-served.experts // (served.ranks + 1))
    awaited = range(min(len(served.table) * each, devices.layout.pages))
    pages: dict[int, Sequence[int]] = dict.fromkeys(devices, awaited)
    pages |= {device: sorted(served.pages_in_use(rank)) for rank, device in enumerate(order)}
    devices.ask_all({device: (Hold(some), None) for device, some in pages.items()})


def load(devices: Devices, pages: Mapping[int, Sequence[Filled]], loaded: Loaded) -> None:
    """Read pages from the checkpoint, on every device its own. Raises RefusedError if that is
    another than the engine was started with."""
    found = devices.ask_all({at: (Load(False, rows), None) for at, rows in pages.items() if rows})
    for device, digests in found.items():
        for one, digest in zip(pages[device], digests, strict=True):
            if digest != loaded.experts[one.layer][one.expert]:
                raise RefusedError(
                    f"expert {one.expert} of layer {one.layer} is not what was loaded: the "
                    "checkpoint changed; put it back, or start the engine anew"
                )
