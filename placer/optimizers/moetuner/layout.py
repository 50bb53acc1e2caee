"""MoETuner's ILP 2: lay the clusters of each layer on GPUs.

min sum over layers of M, the largest C[c1, c2] / B[g1, g2] over pairs of different GPUs. The GPUs
of a node are alike, so M depends only on which clusters share a node and which follow each other on
a GPU. Given the first, the second is plain: the entries of C above M must stay on their GPU, so no
two of them are in one row or column, and M is the largest second-largest entry of any row or column
inside a node, or an entry between nodes. What remains is a chain over layers whose states are the
splits of clusters into nodes: one for a single node, 35 for eight GPUs in two. A dynamic programme
solves it exactly.

Where there are too many splits (16 GPUs in 2 nodes), each layer is laid as well as the one before
allows; from there the solver goes on, unless the programme is too large to be worth building.

Clusters of different sizes must also keep within each GPU's memory over all layers. A layout that
does not is made to fit by exchanges, the cheapest first, and the solver goes on from there, too.
"""

from dataclasses import dataclass
from itertools import permutations
from math import factorial, inf

import numpy as np
from scipy.optimize import linear_sum_assignment

from placer.arrays import FloatArray, IntArray
from placer.objective import Effort
from placer.solver import Programme, partitions
from placer.topology import Topology

SPLITS = 20_000
COMPARED = 5_000_000  # pairs of splits, times the ways to match their nodes
TERMS = 300_000  # of a programme that takes seconds to build


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The GPU of each cluster [layers, clusters], and its cost in tokens over the local link.

    No layout costs less than ``bound``.
    """

    gpu: IntArray
    cost: float
    bound: float
    status: str


def laid(
    flows: FloatArray, size: FloatArray, topology: Topology, effort: Effort, room: float = inf
) -> Layout:
    """A GPU for each cluster of each layer.

    flows: [layers - 1, clusters, clusters] tokens from a cluster to one of the next layer
    size:  [layers, clusters] experts
    room:  experts, of all layers, that fit on a GPU; a layout for which none was found that fits
           is returned as it is
    """
    count, links = topology.gpus, link_times(topology)
    path = node_path(flows, topology)
    gpu = follow(flows, size, links, path)
    cost = float(layout_costs(flows, gpu, links).sum())
    all_near = [_pair_costs(flow, np.arange(count)[None], (1.0, 1.0))[0, 0] for flow in flows]
    bound = cost if path is not None else float(sum(all_near))
    gpu = fitted(gpu, flows, size, links, room)
    cost = float(layout_costs(flows, gpu, links).sum())
    fits = held(gpu, size).max() <= room
    if not len(flows) or (fits and bound >= cost):
        return Layout(gpu, cost, cost, "optimal")
    if flows.size * (count - 1) * (count + 2) > TERMS:
        return Layout(gpu, cost, bound, "layer by layer, too large for a solver")
    programme, on = layout_programme(flows, links)
    for there in on.transpose(2, 0, 1):
        programme.hold(there, size.ravel(), high=room)
    start = np.concatenate([np.eye(count)[gpu].ravel(), layout_costs(flows, gpu, links)])
    answer = programme.solve(effort, start if fits else None)
    if answer.values is not None:
        found = answer.values[on].argmax(axis=2)
        better = float(layout_costs(flows, found, links).sum())
        if better < cost or not fits:
            gpu, cost = found, better
    bound = min(cost, max(bound, answer.bound or 0.0))
    return Layout(gpu, cost, bound, f"{answer.status} ({effort.solver})")


def node_path(flows: FloatArray, topology: Topology) -> IntArray | None:
    """[layers, clusters] the node of each cluster that ILP 2 wants; None for too many splits."""
    count, links = topology.gpus, link_times(topology)
    nodes = topology.nodes if topology.gpus_per_node > 1 else 1  # GPUs without neighbours are alike
    size = count // nodes
    splits = partitions(count, nodes, (size, size), SPLITS)
    if splits is None or len(splits) ** 2 * factorial(nodes) * nodes > COMPARED:
        return None
    held = np.argsort(splits, axis=1, kind="stable").reshape(-1, size)
    groups, group = np.unique(held, axis=0, return_inverse=True)
    group = group.reshape(len(splits), nodes)
    orders = np.array(list(permutations(range(nodes))))
    near_far = (float(links[0, 1 % count]), float(links[0, -1]))

    best, steps = np.zeros(len(splits)), []
    for flow in flows:
        pair = _pair_costs(flow, groups, near_far)
        cost = pair[group[:, None, None, :], group[:, orders]].max(axis=3)  # [before, after, order]
        total = best[:, None] + cost.min(axis=2)
        before = total.argmin(axis=0)
        steps.append((before, cost.argmin(axis=2)[before, np.arange(len(splits))]))
        best = total.min(axis=0)

    last = int(best.argmin())
    path = [last]
    for before, _ in reversed(steps):
        path.append(int(before[path[-1]]))
    path.reverse()
    node = np.arange(nodes)
    rows = [splits[path[0]]]
    for (_, order), split in zip(steps, path[1:], strict=True):
        moved = np.empty_like(node)
        moved[orders[order[split]]] = node
        node = moved
        rows.append(node[splits[split]])
    return np.stack(rows)


def _pair_costs(flow: FloatArray, groups: IntArray, near_far: tuple[float, float]) -> FloatArray:
    """[groups, groups] M among the clusters of one node, if they are followed by others' there.

    groups: [groups, size] clusters that may share a node
    """
    near, far = near_far
    outside = np.array([np.setdiff1d(np.arange(len(flow)), group) for group in groups])

    def second(rows: FloatArray) -> FloatArray:
        """[groups, groups] the largest second-largest entry of a first group's rows."""
        if groups.shape[1] == 1:
            return np.zeros((len(groups), len(groups)))
        return np.sort(rows[:, groups], axis=2)[:, :, -2][groups].max(axis=1)

    inside = np.maximum(second(flow), second(flow.T).T)
    leaving = flow[:, outside].max(axis=2, initial=0.0)[groups].max(axis=1)
    return np.maximum(inside * near, leaving * far)


def follow(
    flows: FloatArray, size: FloatArray, links: FloatArray, path: IntArray | None
) -> IntArray:
    """[layers, clusters] GPUs, each layer's at the least M that the one before it allows.

    Of equal choices the one that evens out the experts of GPUs, then the one that keeps most
    tokens where they are. ``path`` fixes the nodes.
    """
    count = len(links)
    nodes = np.zeros((len(flows) + 1, count), dtype=np.int64) if path is None else path
    home = np.arange(count) * (int(nodes.max()) + 1) // count  # [gpus]
    gpu = np.empty_like(nodes)
    gpu[0, np.argsort(nodes[0], kind="stable")] = np.arange(count)
    experts = np.zeros(count)
    for layer, flow in enumerate(flows):
        experts[gpu[layer]] += size[layer]
        kept = flow[np.argsort(gpu[layer])]  # [gpus, clusters of the next layer]
        busiest = (kept[:, :, None] * links[:, None, :]).max(axis=0)  # [clusters, gpus]
        busiest[nodes[layer + 1][:, None] != home] = inf
        tie = np.outer(size[layer + 1], experts) - kept.T / (1.0 + kept.sum())
        gpu[layer + 1] = _bottleneck(busiest, tie)
    return gpu


def fitted(
    gpu: IntArray, flows: FloatArray, size: FloatArray, links: FloatArray, room: float
) -> IntArray:
    """``gpu`` with clusters exchanged until no GPU holds more than ``room`` experts, or no exchange
    relieves the fullest; the one that costs least each time."""
    while (count := held(gpu, size)).max() > room:
        full = int(count.argmax())
        exchanges = []
        for layer, row in enumerate(gpu):
            mine = int(np.flatnonzero(row == full)[0])
            near, layers = slice(max(layer - 1, 0), layer + 1), slice(max(layer - 1, 0), layer + 2)
            for theirs, other in enumerate(row):
                shift = size[layer, mine] - size[layer, theirs]
                if 0 < shift < count[full] - count[other]:
                    changed = gpu.copy()
                    changed[layer, [mine, theirs]] = row[[theirs, mine]]
                    after, before = (
                        layout_costs(flows[near], at[layers], links).sum() for at in (changed, gpu)
                    )
                    exchanges.append((after - before, layer, theirs, changed))
        if not exchanges:
            break
        gpu = min(exchanges, key=lambda exchange: exchange[:3])[3]
    return gpu


def held(gpu: IntArray, size: FloatArray) -> FloatArray:
    """[gpus] experts of all layers."""
    return np.bincount(gpu.ravel(), size.ravel()).astype(np.float64)


def _bottleneck(cost: FloatArray, tie: FloatArray) -> IntArray:
    """[rows] a column each: first the least largest ``cost``, then the least sum of ``tie``."""
    levels = np.unique(cost[np.isfinite(cost)])
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        above = cost > levels[middle]
        if above[linear_sum_assignment(above)].any():
            low = middle + 1
        else:
            high = middle
    forbidden = 1.0 + len(cost) * (tie.max() - tie.min())
    return linear_sum_assignment(np.where(cost > levels[low], forbidden, tie - tie.min()))[1]


def layout_programme(flows: FloatArray, links: FloatArray) -> tuple[Programme, IntArray]:
    """ILP 2 and its variables [layers, clusters, gpus].

    The paper's z is left out: it only passes on that M >= C / B if both clusters are there. One
    row for all of a cluster's successors says the same and is tighter.
    """
    layers, count = len(flows) + 1, len(links)
    programme = Programme()
    on = programme.binary((layers, count, count))
    top = programme.continuous((len(flows),), 0.0, float(flows.max() * links.max()), cost=1.0)
    for layer in on:
        for cluster, gpu in zip(layer, layer.T, strict=True):
            programme.hold(cluster, 1.0, 1, 1)
            programme.hold(gpu, 1.0, 1, 1)
    for layer, one, other in np.argwhere(np.broadcast_to(links > 0, (len(flows), *links.shape))):
        for cluster, flow in enumerate(flows[layer] * links[one, other]):
            terms = [top[layer], on[layer, cluster, one], *on[layer + 1, :, other]]
            programme.hold(terms, [1.0, -flow.max(), *-flow], low=-flow.max())
    return programme, on


def layout_costs(flows: FloatArray, gpu: IntArray, links: FloatArray) -> FloatArray:
    """[layers - 1] M of each transition."""
    pairs = zip(flows, gpu[:-1], gpu[1:], strict=True)
    return np.array([(flow * links[np.ix_(one, other)]).max() for flow, one, other in pairs])


def link_times(topology: Topology) -> FloatArray:
    """[gpus, gpus] how many times the local link's time a token takes."""
    node = topology.node_of
    times = np.where(
        node[:, None] == node, 1.0, topology.local.bytes_per_s / topology.network.bytes_per_s
    )
    np.fill_diagonal(times, 0.0)
    return times
