"""What a change of DeepSeek-V2-Lite's width takes on NPUs, by placer/resize's cost model.

Two constants are chosen: the warm-up of an instance that attaches, so that the first rung of the
paper's ladder comes out as published, and the start of processes, so that the fourth does. All
else follows from bytes and rates.
"""

from dataclasses import dataclass, replace
from functools import cache

from placer import model, topology
from placer.placement import Placement, linear
from placer.plan import Infeasible
from placer.resize import Devices, Engine, Resize, Speeds, resize
from placer.topology import Link

SHAPE, NODE = model.preset("deepseek-v2-lite"), topology.preset("ascend-910b")
NARROW, WIDE = 3, 4
UP_S, WITHOUT_STANDBYS_S = 2.43, 62.78  # the paper's, of going up
KV_ROOM = 25 * 10**9  # of a device, so that it comes to the paper's 36 GB
NO_LINK = Link(1.0, 0.0)  # any disk is faster


@dataclass(frozen=True, slots=True)
class Way:
    """What there is. p2p: copies between devices; standbys: processes that wait; zero_copy: what is
    on a device already may stay there"""

    p2p: bool = True
    standbys: bool = True
    zero_copy: bool = True


ALL_OF_IT, RESTART = Way(), Way(p2p=False, standbys=False, zero_copy=False)


def seconds(way: Way, before: int, after: int) -> float:
    """From the command to serving."""
    return change(way, before, after).seconds.total + (0.0 if way.standbys else start_s())


@cache
def change(way: Way, before: int, after: int, warmed: bool = True) -> Resize:
    """Between linear placements. warmed: count the warm-up, too"""
    hardware = NODE.resized(before + after, 1)
    if not way.p2p:
        hardware = replace(hardware, local=NO_LINK)
    old, first = tuple(range(before)), 0 if way.zero_copy else before
    gone = frozenset[int]() if way.zero_copy else frozenset(old)
    devices = Devices(hardware, old, tuple(range(first, first + after)), dead=gone)
    speeds = Speeds(attach_s=warm_up_s() if warmed else 0.0)
    capacity = NODE.gpu.hbm_bytes
    engine = Engine(SHAPE.expert_bytes, SHAPE.other_bytes, capacity, KV_ROOM, speeds=speeds)
    found = resize(placed(before), placed(after), devices, engine)
    assert not isinstance(found, Infeasible), found.reason
    return found


def placed(ranks: int) -> Placement:
    slots = -(-SHAPE.experts // ranks) * ranks
    return linear(SHAPE.layers, slots, SHAPE.experts, ranks)


@cache
def warm_up_s() -> float:
    return UP_S - change(ALL_OF_IT, NARROW, WIDE, warmed=False).seconds.total


@cache
def start_s() -> float:
    return WITHOUT_STANDBYS_S - change(Way(p2p=False), NARROW, WIDE).seconds.total
