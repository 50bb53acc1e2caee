"""Which copies a change needs, whom each comes from, and the time that they take at least.

A copy comes from its own node if that has a holder, else over the network. (Where one GPU is the
only holder for its node of very much, other nodes could relieve it; this is not tried.) Among these
holders the sources are chosen so that the busiest one sends as few as possible. This is exact:
while the busiest can hand a copy on, directly or along a chain, to one that sends two fewer, it
does. When it cannot, no copy of the ranks that chains reach could come from others, and all of
these ranks send as many as the busiest or one fewer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from placer.arrays import BoolArray, IntArray
from placer.placement import Placement

LOCAL, NETWORK = 0, 1


@dataclass(frozen=True, slots=True)
class Limits:
    """A budget in copies. Pairs are of the local link and of the network.

    lanes:      copies a round that a rank may send, and as many that it may receive
    node_lanes: copies a network lane that a node may send, and as many that it may receive
    scratch:    slots of a GPU
    seconds:    that a copy takes
    """

    lanes: tuple[int, int]
    node_lanes: int
    scratch: int
    seconds: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Each array is [copies], sorted by link, source, GPU, layer and expert.

    ``node_load`` is the least that the busiest node can have on its way in or out.
    """

    layer: IntArray
    expert: IntArray
    source: IntArray
    gpu: IntArray
    link: IntArray
    node_load: int

    def __len__(self) -> int:
        return len(self.layer)


def needed(before: Placement, after: Placement) -> Copies:
    """One copy for every GPU and expert that were not together before."""
    node = before.node_of_gpu
    return between(before.held_in(before.gpus), after.held_in(after.gpus), node)


def between(
    had: BoolArray, wanted: BoolArray, node: IntArray, sent: IntArray | None = None
) -> Copies:
    """One copy for every GPU and expert that are together in ``wanted`` alone.

    had, wanted: [layers, experts, gpus]; node: [gpus]
    sent:        [links, gpus] what each GPU sends already, in copies; nothing, if left out
    """
    layer, expert, gpu = np.nonzero(wanted & ~had)
    holders = had[layer, expert]
    source, link = nearest(holders, gpu, node, sent)
    far = link == NETWORK
    nodes = int(node.max()) + 1
    senders = np.stack([holders[far][:, node == one].any(axis=1) for one in range(nodes)], axis=1)
    busiest = [fewest_each(senders, np.arange(nodes)), node[gpu[far]]]
    loads = [np.bincount(side, minlength=nodes) for side in busiest]
    order = np.lexsort((expert, layer, gpu, source, link))
    return Copies(
        layer[order],
        expert[order],
        source[order],
        gpu[order],
        link[order],
        node_load=int(np.max(loads)),
    )


def nearest(
    holders: BoolArray, gpu: IntArray, node: IntArray, sent: IntArray | None = None
) -> tuple[IntArray, IntArray]:
    """[items] the holder that each item is copied from to its GPU, and the link that this takes.

    holders: [items, gpus], one at least of each; gpu: [items]; node, sent: as in ``between``
    """
    nearby = holders & (node == node[gpu][:, None])
    link = np.where(nearby.any(axis=1), LOCAL, NETWORK)
    source = np.empty_like(gpu)
    for which, candidates in ((LOCAL, nearby), (NETWORK, holders)):
        of_link = link == which
        begun = None if sent is None else sent[which]
        source[of_link] = fewest_each(candidates[of_link], node, begun)
    return source, link


def fewest_each(candidates: BoolArray, group: IntArray, begun: IntArray | None = None) -> IntArray:
    """[items] the bin that each item takes, so that the fullest bin has as few as possible.

    candidates: [items, bins] that an item may take; group: [bins], of two bins as full the one in
    the emptier group is taken; begun: [bins] what is in them already
    """
    chosen = candidates.argmax(axis=1)
    choice = candidates.sum(axis=1)
    load = np.bincount(chosen[choice == 1], minlength=len(group))
    if begun is not None:
        load = load + begun
    of_group = np.bincount(group, load).astype(np.int64)
    for item in np.nonzero(choice > 1)[0]:
        open_to = np.nonzero(candidates[item])[0]
        best = open_to[np.lexsort((of_group[group[open_to]], load[open_to]))[0]]
        chosen[item] = best
        load[best] += 1
        of_group[group[best]] += 1
    while path := _relief(candidates, chosen, load):
        for giver, taker in path:
            item = np.nonzero((chosen == giver) & candidates[:, taker])[0][0]
            chosen[item] = taker
            load[giver] -= 1
            load[taker] += 1
    return chosen


def _relief(candidates: BoolArray, chosen: IntArray, load: IntArray) -> list[tuple[int, int]]:
    """(giver, taker) from a bin with two less back to the fullest; [] if there is no such path."""
    fullest = int(load.argmax())
    came_from = {fullest: fullest}
    queue = [fullest]
    for giver in queue:
        for taker in np.nonzero(candidates[chosen == giver].any(axis=0))[0].tolist():
            if taker not in came_from:
                came_from[taker] = giver
                queue.append(taker)
                if load[taker] <= load[fullest] - 2:
                    path = [(giver, taker)]
                    while path[-1][0] != fullest:
                        path.append((came_from[path[-1][0]], path[-1][0]))
                    return path
    return []


def rank_loads(copies: Copies, gpus: int, of: Any = ...) -> IntArray:
    """[links, directions out and in, gpus] copies, of all or of those in the index ``of``."""
    link, ends = copies.link[of], (copies.source[of], copies.gpu[of])
    flat = [np.bincount(link * gpus + end, minlength=2 * gpus) for end in ends]
    return np.stack(flat).reshape(2, 2, gpus).swapaxes(0, 1)


def lower_bound_s(copies: Copies, gpus: int, limits: Limits) -> float:
    """Seconds below which no schedule with copies from the nearest holders can come.

    Each link takes as long as its busiest rank. Where the local copies of one rank outnumber those
    that the budget lets go beside the network copies of another, the rest comes on top, and the
    other way round. A node carries ``node_lanes`` copies in the time of one.
    """
    local, network = (int(load.max()) for load in rank_loads(copies, gpus))
    local_s, network_s = limits.seconds
    beside = limits.lanes[LOCAL]
    return max(
        local * local_s + max(0, network - beside * local) * network_s,
        network * network_s + max(0, local - beside * network) * local_s,
        -(-copies.node_load // limits.node_lanes) * network_s,
    )
