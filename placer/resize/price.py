"""What a change of width costs, in the figures of a sweep."""

from dataclasses import dataclass, replace

from placer.cost.memory import budget_bytes
from placer.errors import PlacerError
from placer.placement import Placement
from placer.plan import Infeasible
from placer.planner import SAFEGUARDED
from placer.problem import Problem
from placer.resize.devices import resized
from placer.resize.engine import Engine
from placer.resize.ledger import Kind
from placer.resize.predict import Seconds
from placer.resize.target import resize_to
from placer.topology import Topology


@dataclass(frozen=True, slots=True)
class Price:
    """What the cheapest target (target.py) costs.

    kept, remapped, copied, loaded: slots of all layers, by what becomes of them
    peak_bytes: weights of the fullest device at the switch
    step_s:     seconds of a step's MoE layers after the change, as expected from the profile
    after:      the target
    """

    kept: int
    remapped: int
    copied: int
    loaded: int
    p2p_bytes: int
    network_bytes: int
    disk_bytes: int
    peak_bytes: int
    seconds: Seconds
    step_s: float
    after: Placement


def price(
    problem: Problem,
    current: Placement,
    runs_on: Topology | None,
    planned: Placement | None,
    optimizer: str,
) -> Price | Infeasible:
    """Of going from ``current`` to the problem's width, the last ranks coming or going.

    planned: a placement of the problem's, if there is one, which is where to go if that is worth it
    runs_on: the hardware of ``current``, if it is known; nobody resizes onto another kind

    KV is left out, since nobody knows what will be in flight; the KV cache must leave the peak
    free.
    """
    where = problem.topology
    if runs_on and replace(runs_on, gpus=where.gpus, nodes=where.nodes, name=where.name) != where:
        return Infeasible(f"the current plan runs on {runs_on.name}: give that --topology")
    try:
        if current.gpus > where.gpus:
            where = where.resized(current.gpus, current.nodes)
        devices = resized(where, range(current.gpus), problem.topology.gpus)
        if isinstance(devices, Infeasible):
            return devices
        model, capacity = problem.model, budget_bytes(where, problem.objective)
        engine = Engine(model.expert_bytes, model.other_bytes, capacity)
        # The others look at no current plan: they would find ``planned`` again.
        again = optimizer if optimizer == SAFEGUARDED else None
        found = resize_to(problem, current, devices, engine, again, [planned] if planned else [])
    except PlacerError as error:
        return Infeasible(str(error))
    if isinstance(found, Infeasible):
        return found
    way = found.resize
    kept, remapped, copied, loaded = (
        way.experts.count(kind) for kind in (Kind.KEEP, Kind.REMAP, Kind.COPY, Kind.LOAD)
    )
    return Price(
        kept=kept,
        remapped=remapped,
        copied=copied,
        loaded=loaded,
        p2p_bytes=way.p2p_bytes,
        network_bytes=way.network_bytes,
        disk_bytes=way.disk_bytes,
        peak_bytes=int(way.peak_bytes.max()),
        seconds=way.seconds,
        step_s=found.step_s,
        after=way.after,
    )
