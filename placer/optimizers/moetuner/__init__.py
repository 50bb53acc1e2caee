"""moetuner: clusters of equal load, laid on GPUs so that the busiest pair of GPUs sends little.

Inputs: loads P[e, l] and transitions R[e1, e2, l], all pairs of a token's experts alike (the paper
leaves it open). Source: MoETuner, arXiv 2502.06643: two integer programmes, one after the other.

- ILP 1 (clusters.py): min sum over layers and clusters of |T - mean T|, T the load of a cluster.
- ILP 2 (layout.py): min sum over layers of M, the largest C[c1, c2] / B[g1, g2] over the pairs of
  different GPUs, c1 standing on g1 and c2 on g2 one layer later. C sums R over the experts of two
  clusters; B is the link's bandwidth, here over the local link's, so that costs are in tokens.

It has no replicas: redundant slots let cluster sizes vary, and stay empty. The paper bounds no
layer: a cluster has one expert or more (equation 7), and a GPU L * E / G of all layers, so that its
memory suffices (13). So it is with ``Objective.uneven``: sizes are free in each layer, the map has
as many slots as the largest cluster needs, and a GPU's memory bounds the sum of its layers.
L * E / G exactly may be infeasible for the clusters of ILP 1; it only chooses among the best
layouts, and how far it is missed is reported. If clusters do not fit the memory, the largest
shrink.

Cost: next to nothing where no solver is needed: Mixtral's 32 x 8 experts on 4 GPUs in 0.05 s, both
programmes proven optimal. It loses to eplb in balance where an expert is hotter than a GPU's share,
and to exflow in hops, since only the busiest pair of GPUs counts. It looks at neither groups nor
the current placement. What a solver had found when its time ran out need not come out again.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from placer.arrays import FloatArray
from placer.cost.memory import experts_that_fit
from placer.errors import RoutingError
from placer.optimizers.moetuner.clusters import Clusters, balanced
from placer.optimizers.moetuner.layout import Layout, held, laid
from placer.placement import Placement
from placer.plan import Solution
from placer.problem import Problem
from placer.solver import partitions

WAYS = 20_000  # partitions of a layer that are all looked at


def optimize(problem: Problem) -> Solution:
    profile, gpus = problem.profile, problem.topology.gpus
    if profile.transitions is None:
        raise RoutingError(
            f"moetuner needs transitions and this profile of {profile.tokens:.0f} tokens has loads "
            "alone: give a trace, or use --optimizer eplb"
        )
    room = experts_that_fit(problem.model, problem.topology, problem.objective)
    fewest, most = min(1, profile.experts // gpus), problem.slots // gpus
    if problem.objective.uneven:
        most = profile.experts - fewest * (gpus - 1)
    while True:
        found, layout, size = _solved(problem, profile.transitions, (fewest, most), room)
        largest = int(size.max())
        if held(layout.gpu, size).max() <= room or largest * gpus <= problem.slots:
            break
        most = largest - 1
    cluster = np.stack([each.cluster for each in found])
    placement = problem.partition(np.take_along_axis(layout.gpu, cluster, axis=1))
    return Solution(placement, notes=tuple(_notes(problem, found, layout, placement)))


def _solved(
    problem: Problem, transitions: FloatArray, sizes: tuple[int, int], room: int
) -> tuple[list[Clusters], Layout, FloatArray]:
    """Both programmes, for clusters of so many experts; [layers, clusters] experts of each."""
    profile, gpus = problem.profile, problem.topology.gpus
    programmes = profile.layers + 1  # that share the time
    effort = replace(problem.effort, time_limit_s=problem.effort.time_limit_s / programmes)
    sizes = (sizes[0], min(sizes[1], profile.experts))
    ways = partitions(profile.experts, gpus, sizes, WAYS)
    found = [balanced(load, gpus, sizes, effort, ways) for load in profile.load]
    member = np.eye(gpus)[np.stack([each.cluster for each in found])]  # [layers, experts, clusters]
    flows = member[:-1].transpose(0, 2, 1) @ transitions @ member[1:]
    size = member.sum(axis=1)
    return found, laid(flows, size, problem.topology, effort, room), size


def _notes(
    problem: Problem, found: Sequence[Clusters], layout: Layout, placement: Placement
) -> Iterator[str]:
    profile, gpus = problem.profile, problem.topology.gpus
    total = profile.load.sum()
    off, bound = sum(each.deviation for each in found), sum(each.bound for each in found)
    ended = sorted(Counter(each.status for each in found).items())
    yield (
        f"ILP 1: clusters are {off / total:.2%} of the load off balance, bound {bound / total:.2%}"
        f"; layers: {', '.join(f'{count} {status}' for status, count in ended)}"
    )
    gap = f", gap {1 - layout.bound / layout.cost:.1%}" if layout.bound < layout.cost else ""
    yield f"ILP 2: cost {layout.cost:.6g} tokens, bound {layout.bound:.6g}{gap}: {layout.status}"
    wanted = profile.layers * profile.experts / gpus
    if missed := np.abs(placement.copies.sum(axis=(0, 1)) - wanted).max():
        yield (
            f"ILP 2: cluster sizes vary, GPUs hold up to {missed:g} experts more or fewer than "
            f"{wanted:g} over all layers"
        )
    if empty := placement.slots - profile.experts:
        yield f"moetuner has no replicas: {empty} slots a layer are empty"
