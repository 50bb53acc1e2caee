"""The way from one placement to another that is given, on other devices."""

from dataclasses import dataclass

import numpy as np

from placer.arrays import IntArray
from placer.cost.moves import rates
from placer.errors import PlacementError
from placer.placement import Placement
from placer.plan import Infeasible
from placer.resize import predict, whole
from placer.resize.devices import Devices
from placer.resize.engine import Engine
from placer.resize.ledger import Kind, Ledger, holders, ledger, sources
from placer.resize.naming import named
from placer.resize.predict import Seconds
from placer.resize.whole import Part
from placer.schedule import Relabel
from placer.schedule.copies import NETWORK


@dataclass(frozen=True, slots=True, eq=False)
class Resize:
    """What to do, in this order: LOAD and COPY of ``experts`` and ``dense`` while the old ranks
    serve; KEEP and REMAP, the new ranges; COPY of ``kv`` and the switch; FREE.

    after:      with the labels that the ledger is for; its rank r is ``devices.after[r]``
    peak_bytes: [devices of the hardware] at the switch
    """

    devices: Devices
    before: Placement
    after: Placement
    experts: Ledger
    dense: tuple[Part, ...]
    kv: tuple[Part, ...]
    peak_bytes: IntArray
    seconds: Seconds

    @property
    def p2p_bytes(self) -> int:
        """Copied from device to device: experts, dense weights and KV."""
        return int(self._copied.sum())

    @property
    def network_bytes(self) -> int:
        """Those of them that cross the network."""
        return int(self._copied[NETWORK].sum())

    @property
    def disk_bytes(self) -> int:
        """Read from the checkpoint."""
        parts = sum(part.bytes for part in self.dense if part.kind == Kind.LOAD)
        return self.experts.count(Kind.LOAD) * self.experts.page_bytes + parts

    @property
    def _copied(self) -> IntArray:
        """[links, devices] that arrive"""
        return predict.link_bytes(self.devices, self.experts, self.dense + self.kv)[:, 1]


def resize(
    before: Placement,
    after: Placement,
    devices: Devices,
    engine: Engine,
    relabel: Relabel = "layers",
) -> Resize | Infeasible:
    """The way that copies the fewest bytes from device to device and, of these, the fewest over the
    network; the busiest source of each link then sends as little as possible.

    relabel: whether contents of ``after`` may change devices, as in ``schedule.match_slots``

    Infeasible, with what would fit, if a device cannot hold both ranges of pages, or nobody has
    room for a sequence in flight. Raises PlacementError for placements that these devices cannot
    have or that lack an expert.
    """
    devices.fits(before, after)
    if lost := after.lost:
        raise PlacementError(
            "no slot of layer {} holds expert {} after the change: give a placement that holds"
            " every expert".format(*lost[0])
        )
    had = holders(before, devices.before, devices)
    after = named(before, after, devices, had, relabel)
    disk = engine.speeds.disk_bytes_per_s
    local, network = rates(devices.hardware)
    from_disk = (disk > local, disk > network)
    kv = whole.kv(engine, devices)
    if isinstance(kv, Infeasible):
        return kv
    dense = whole.dense(engine, devices, from_disk)
    sent = whole.sent(dense, devices, engine.expert_bytes)
    source = sources(had, holders(after, devices.after, devices), devices, sent, from_disk)
    experts = ledger(before, after, devices, source, engine.expert_bytes)
    peak = predict.peak_bytes(engine, devices, before, experts)
    if int(peak.max()) > engine.capacity:
        return _too_large(before, devices, engine, peak)
    seconds = predict.seconds(engine, devices, experts, dense, kv)
    return Resize(devices, before, after, experts, dense, kv, peak, seconds)


def _too_large(before: Placement, devices: Devices, engine: Engine, peak: IntArray) -> Infeasible:
    """What would fit: the fewest ranks whose experts do if every device keeps what it holds."""
    device = int(np.argmax(peak))
    room = engine.capacity - engine.dense_bytes - engine.kv_room
    slots = max(room, 0) // engine.expert_bytes // before.layers
    said = (
        f"device {device} would hold {peak[device] / 1e9:.3g} GB at the switch, old and new pages"
        f" together, and has {engine.capacity / 1e9:.3g} GB"
    )
    if not slots:
        return Infeasible(f"{said}: no width fits, not even one expert a layer on each device")
    ranks = -(-before.experts // slots // devices.tp) * devices.tp
    usable = devices.hardware.gpus - len(devices.dead)
    if ranks > usable:
        return Infeasible(f"{said}: {ranks} ranks would fit, and there are {usable} devices")
    if ranks > len(devices.after):
        return Infeasible(f"{said}: use {ranks} ranks or more")
    less = f"{(peak[device] - engine.capacity) / 1e9:.3g} GB less for KV"
    return Infeasible(f"{said}: use more ranks, fewer slots a rank, or {less}")
