"""eldr: requests that use similar experts to one GPU each (ELDR, arXiv 2607.00466), on eplb's map.

A request's signature is the share of each layer's choices that each expert got in its prefill.
Balanced K-means makes a zone of signatures for each GPU: centroids, then as many requests to each,
at the least squared distance in all (an assignment, solved as a flow), in turns. Online a request
goes to the least loaded of the GPUs whose centroid is nearly as near as the nearest: the locality
band.

Readings (ours). ELDR chooses among workers that each hold all experts, and saves reading weights;
inside one expert-parallel group each GPU holds a part, and a zone is worth what it finds there. So
eplb's groups of each layer are named as the zones that use them most, which changes neither
balance nor fan-out. The band is BAND of the spread of a request's distances.

Input: the tokens of ``problem.trace``. Cost: ROUNDS flows of sequences x gpus. It loses where
experts may stand by who uses them (joint with homes, cocluster).
"""

from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray, IntArray, frozen
from placer.clusters import loads_by_request
from placer.cost.homes import shared
from placer.errors import RoutingError
from placer.labels import assign
from placer.optimizers import optimizer
from placer.plan import Solution
from placer.problem import Problem
from placer.trace import Trace

ROUNDS = 20
BAND = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Zones:
    """centroids: [gpus, layers * experts] of signatures"""

    centroids: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "centroids", frozen(self.centroids))

    def distances(self, signatures: FloatArray) -> FloatArray:
        """[requests, gpus] squared distances. signatures: [requests, layers * experts]"""
        centroids = self.centroids
        near = signatures @ centroids.T
        squares = (signatures**2).sum(axis=1)[:, None] + (centroids**2).sum(axis=1)
        distances: FloatArray = np.maximum(squares - 2 * near, 0.0)
        return distances

    def homes(self, signatures: FloatArray, seq_lens: IntArray) -> IntArray:
        """[requests] the GPU of each, as they come: the least loaded inside its locality band."""
        distances = np.sqrt(self.distances(signatures))
        nearest, furthest = distances.min(axis=1), distances.max(axis=1)
        inside = distances <= (nearest + BAND * (furthest - nearest))[:, None]
        owned, found = np.zeros(distances.shape[1]), np.empty(len(seq_lens), dtype=np.intp)
        for request, length in enumerate(seq_lens.tolist()):
            found[request] = np.where(inside[request], owned, np.inf).argmin()
            owned[found[request]] += length
        return found


def optimize(problem: Problem) -> Solution:
    if problem.trace is None:
        raise RoutingError("eldr needs requests and a profile has none: give traces")
    balanced, trace = optimizer("eplb")(problem), problem.trace
    _, homes = zones(trace, problem.topology.gpus, problem.seed)
    used = loads_by_request(trace)
    owned = np.eye(problem.topology.gpus)[homes].T @ used.reshape(len(used), -1)
    held = balanced.placement.held_in(problem.topology.gpus)
    by_zone = owned.reshape(-1, trace.layers, trace.experts).transpose(1, 0, 2) @ held
    contents = assign(by_zone, problem.topology.nodes)
    table = balanced.placement.physical_to_logical.reshape(*contents.shape, -1)
    named = np.take_along_axis(table, contents[:, :, None], axis=1)
    return Solution(problem.placement(named.reshape(len(named), -1)), notes=balanced.notes)


def zones(trace: Trace, gpus: int, seed: int = 0) -> tuple[Zones, IntArray]:
    """The zones of a trace's requests, and [sequences] which each of them is in."""
    requests = signatures(loads_by_request(trace))
    rng, one_each = np.random.default_rng(seed), np.ones(len(requests))
    # K-means++: each next centroid far from those before.
    centroids = requests[rng.integers(len(requests), size=1)]
    while len(centroids) < gpus:
        away = Zones(centroids).distances(requests).min(axis=1)
        chance = away / away.sum() if away.any() else one_each / len(requests)
        centroids = np.vstack([centroids, requests[rng.choice(len(requests), p=chance)]])
    homes = np.full(len(requests), -1)
    for _ in range(ROUNDS):
        distances = Zones(centroids).distances(requests)
        nearest = shared(distances.max() - distances, one_each).argmax(axis=1)
        if (nearest == homes).all():
            break
        homes = nearest
        for gpu in np.unique(homes):
            centroids[gpu] = requests[homes == gpu].mean(axis=0)
    return Zones(centroids), homes


def signatures(used: FloatArray) -> FloatArray:
    """[requests, layers * experts] shares of each layer's choices.
    used: [requests, layers, experts] tokens by expert, counted or foreseen"""
    total = np.maximum(used.sum(axis=2, keepdims=True), 1e-300)
    share: FloatArray = (used / total).reshape(len(used), -1)
    return share
