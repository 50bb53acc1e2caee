"""MoETuner's ILP 1: split the experts of each layer into clusters of equal load.

min sum over clusters of |T - mean T|, T the load of a cluster's experts. One cluster a GPU, of at
least one expert, and at most as many as the GPU has slots or, where sizes may be uneven, as the
others leave. No term joins two layers, so that each is solved alone. Few partitions are all looked
at. Of many, packing heaviest first and then exchanging is taken if that is near enough, and is
otherwise where a solver starts. Near enough is ``effort.gap`` of a GPU's mean load: of an optimum
that is nearly zero a share says nothing.
"""

from dataclasses import dataclass, replace

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.objective import Effort
from placer.solver import Programme, Status


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """The cluster of each expert of a layer [experts], and how many tokens are off balance.

    No clusters have a ``deviation`` below ``bound``.
    """

    cluster: IntArray
    deviation: float
    bound: float
    status: Status


def balanced(
    load: FloatArray, count: int, sizes: tuple[int, int], effort: Effort, ways: IntArray | None
) -> Clusters:
    """``count`` clusters of experts with this ``load`` [experts] tokens.

    sizes: fewest and most experts of a cluster
    ways:  [ways, experts] all partitions, if they are few
    """
    if ways is not None:
        deviations = deviation(load, ways, count)
        held = (ways[:, :, None] == np.arange(count)).sum(axis=1)
        best = int(np.lexsort(((held**2).sum(axis=1), deviations))[0])  # of equals, even sizes
        least = float(deviations[best])
        return Clusters(ways[best], least, least, "optimal")
    start = packed(load, count, sizes)
    off = float(deviation(load, start, count))
    if off <= effort.gap * load.sum() / count:
        return Clusters(start, off, 0.0, "within gap" if off else "optimal")
    programme, member = cluster_programme(load, count, sizes)
    # The programme's cost is half the deviation and all the load.
    half = replace(effort, gap=effort.gap / (2 * count))
    answer = programme.solve(half, _values(load, start, count))
    bound = max(0.0, 2 * ((answer.bound or 0.0) - float(load.sum())))
    if answer.values is not None:
        found = answer.values[member].argmax(axis=1)
        if (better := float(deviation(load, found, count))) < off:
            start, off = found, better
    return Clusters(start, off, min(bound, off), answer.status)


def deviation(load: FloatArray, ways: IntArray, count: int) -> FloatArray:
    """[...] sum over clusters of |T - mean T| for ``ways`` [..., experts]."""
    total = load @ (ways[..., None] == np.arange(count)).astype(np.float64)
    return np.abs(total - load.sum() / count).sum(axis=-1)


def cluster_programme(
    load: FloatArray, count: int, sizes: tuple[int, int]
) -> tuple[Programme, IntArray]:
    """ILP 1 of one layer, and its variables [experts, clusters].

    The cost is the sum of max(T, mean T), which is all the load and half the deviation. Clusters
    are alike: an expert goes into one that a heavier expert is in, or into the next.
    """
    programme = Programme()
    total = float(load.sum())
    member = programme.binary((len(load), count))
    above = programme.continuous((count,), total / count, total, cost=1.0)
    for row in member:
        programme.hold(row, 1.0, 1, 1)
    for rank, expert in enumerate(_heaviest(load)[: count - 1]):
        programme.hold(member[expert, rank + 1 :], 1.0, 0, 0)
    for column, top in zip(member.T, above, strict=True):
        programme.hold(column, 1.0, *sizes)
        programme.hold(np.append(column, top), np.append(load, -1.0), high=0.0)
    return programme, member


def _values(load: FloatArray, cluster: IntArray, count: int) -> FloatArray:
    """``cluster`` [experts] as values of ``cluster_programme``'s variables."""
    met = cluster[_heaviest(load)]
    number = np.argsort(np.argsort([np.argmax(met == each) for each in range(count)]))
    member = np.eye(count)[number[cluster]]
    return np.concatenate([member.ravel(), np.maximum(load @ member, load.sum() / count)])


def packed(load: FloatArray, count: int, sizes: tuple[int, int]) -> IntArray:
    """[experts] clusters: heaviest expert first into the lightest with room, then exchanges."""
    fewest, most = sizes
    cluster = np.full(len(load), -1)
    total, filled = np.zeros(count), np.zeros(count, dtype=np.int64)
    for expert in _heaviest(load):
        room = np.flatnonzero(filled < most)
        at = room[np.lexsort((filled[room], total[room]))[0]]
        cluster[expert] = at
        total[at] += load[expert]
        filled[at] += 1

    # Behind the experts an empty place of each cluster: exchanged for it, an expert moves alone.
    weight = np.append(load, np.zeros(count))
    off = total - load.sum() / count
    while True:
        at = np.append(cluster, np.arange(count))
        shift = load[:, None] - weight  # what the first one's cluster would lose to the second's
        mine, theirs = off[cluster][:, None], off[at]
        gain = np.abs(mine) + np.abs(theirs) - np.abs(mine - shift) - np.abs(theirs + shift)
        gain[cluster[:, None] == at] = 0
        gain[:, len(load) :][(filled[cluster] <= fewest)[:, None] | (filled >= most)] = 0
        one, other = np.unravel_index(gain.argmax(), gain.shape)
        if gain[one, other] <= 1e-9 * load.sum():
            return cluster
        source, target = cluster[one], at[other]
        off[source] -= shift[one, other]
        off[target] += shift[one, other]
        cluster[one] = target
        if other < len(load):
            cluster[other] = source
        else:
            filled[source] -= 1
            filled[target] += 1


def _heaviest(load: FloatArray) -> IntArray:
    """[experts] heaviest first, ties to the lowest index."""
    return np.argsort(-load, kind="stable")
