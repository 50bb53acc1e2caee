"""cocluster: requests and experts that belong together, on one GPU (Sem-MoE's Algorithm 1).

Requests are clustered as experts are, a cluster of each to a GPU, so that a scheduler can send a
request where most of its experts are. Minimised is

    theta * sum_i |sum_j R[i,j] a_j - total / G|
    + (1 - theta) * sum_{i1 != i2} sum_j sum_k R[i1,j] C[i2,k] n[j,k]

R[i,j] request j is in cluster i, C[i,k] expert k is, a_j tokens of the request, n[j,k] those routed
to the expert. The first term counts tokens away from an even share, the second activations that
leave their request's GPU. E / G experts of each layer to a GPU.

Solver, alternating. Experts: heaviest first, each to the cluster of the highest score among those
not full; the score is its affinity to the experts there (tokens that use both, over top_k - 1),
plus its affinity to the requests there, less the load there; then swaps inside a layer while the
sum of scores grows. Requests: longest first, by their affinity to the experts there, plus that to
the requests there, less the tokens there beyond an even share; then the best moves, by the
objective. The first clusters of requests follow the experts of one layer: a few layers are tried,
``seed`` says which, and the best is carried on. Returned are the best clusters met, linear among
them.

Token tables (``votes``) are counted from the requests: T[token, i] occurrences in requests of
cluster i, and T_p the largest share of them. Online each of a request's tokens votes for its GPU.

Readings (ours). Pr(expert | token) sums to 1, so affinities are counts of activations. The affinity
of two requests is what of the one's activations falls on experts as the other's would. The second
term is the mean over layers, and theta is 0.5. Requests move singly where experts swap: their
clusters are held even by the first term. Load has weight 8 in an expert's score: on
DeepSeek-V2-Lite and 8 GPUs that takes balancedness from 69% to 91% (held out). With ``keep_groups``
an expert stays on the node where the linear placement has it.

Input: the sequences of ``problem.trace``. Source: arXiv 2503.04398v4. Cost: 2 * (STARTS + ROUNDS)
passes over the requests, layers * experts**2 * gpus a sweep of swaps. It loses where balance is all
that counts (eplb), where no scheduler sends requests to their clusters, and in remote visits, of
which a token makes one a GPU however many of its experts are there (joint); it has no replicas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray, IntArray, frozen
from placer.clusters import loads_by_request
from placer.errors import RoutingError
from placer.plan import Solution
from placer.problem import Problem
from placer.profile import of_trace
from placer.tables import Vocabulary, token_identity
from placer.trace import Trace

THETA = 0.5
LOAD = 8.0
STARTS, ROUNDS = 4, 6
MOVES = 50  # of single requests, a step of requests
NOTHING = 1e-6  # activations: below it a gain is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Who stands on which GPU.

    experts:   [layers, experts]
    requests:  [sequences]
    objective: the formula above; local: share of activations on their request's GPU
    """

    experts: IntArray
    requests: IntArray
    objective: float
    local: float

    def __post_init__(self) -> None:
        for name in ("experts", "requests"):
            object.__setattr__(self, name, frozen(getattr(self, name)))


def optimize(problem: Problem) -> Solution:
    start, best = cocluster(problem)
    notes = [
        f"objective {start.objective:,.0f} -> {best.objective:,.0f} (linear, then co-clustered; "
        f"theta {THETA:g}): requests find {start.local:.1%} -> {best.local:.1%} of their experts "
        "on their own cluster's GPU"
    ]
    if redundant := problem.slots - problem.model.experts:
        notes.append(f"{redundant} redundant slots a layer stay empty: cocluster has no replicas")
    return Solution(problem.partition(best.experts), notes=tuple(notes))


def cocluster(problem: Problem) -> tuple[Clusters, Clusters]:
    """The clusters of the linear placement, and the best that were found."""
    if problem.trace is None:
        raise RoutingError("cocluster needs requests and a profile has none: give traces")
    world = _World(problem, problem.trace)
    linear = world.clusters(np.tile(world.linear, (world.layers, 1)))
    alone = _experts(world, np.zeros((world.layers, world.experts, world.gpus)))
    layers = np.random.default_rng(problem.seed).permutation(world.layers)[:STARTS]
    starts = [_requests(world, world.near_requests(alone, [layer]), [layer]) for layer in layers]
    found = [_round(world, requests) for requests in starts]
    latest = min(found, key=lambda clusters: clusters.objective)
    best = [linear, latest]
    for _ in range(ROUNDS):
        latest = _round(world, latest.requests)
        best.append(latest)
    return linear, min(best, key=lambda clusters: clusters.objective)


class _World:
    """Who uses what: the requests of a trace, and the GPUs that clusters stand on."""

    def __init__(self, problem: Problem, trace: Trace) -> None:
        self.used, self.tokens = loads_by_request(trace), trace.seq_lens
        self.layers, self.experts, self.gpus = trace.layers, trace.experts, problem.topology.gpus
        profile = of_trace(trace)
        assert profile.coactivation is not None  # a trace has it
        self.load, self.together = profile.load, profile.coactivation
        self.others = max(trace.top_k - 1, 1)
        self.linear = np.arange(self.experts) * self.gpus // self.experts
        # Groups that may not be split stay on the node where linear has them.
        nodes = problem.topology.nodes if problem.objective.keep_groups else 1
        self.node_of_gpu = np.arange(self.gpus) * nodes // self.gpus
        self.node = self.node_of_gpu[self.linear]

    def near_experts(self, requests: IntArray) -> FloatArray:
        """[layers, experts, gpus] activations of each expert by each GPU's requests."""
        owned = np.eye(self.gpus)[requests].T @ self.used.reshape(len(self.used), -1)
        return owned.reshape(self.gpus, self.layers, self.experts).transpose(1, 2, 0)

    def near_requests(self, experts: IntArray, layers: Sequence[int]) -> FloatArray:
        """[sequences, gpus] activations of each by each GPU's experts, in some layers."""
        held = np.eye(self.gpus)[experts[layers]]
        return np.einsum("rle,leg->rg", self.used[:, layers], held, optimize=True)

    def clusters(self, experts: IntArray) -> Clusters:
        """With the requests where these experts want them."""
        layers = range(self.layers)
        near = self.near_requests(experts, layers)
        requests = _requests(self, near, layers)
        here = near[np.arange(len(near)), requests].sum()
        uneven = np.abs(_excess(requests, self.tokens, self.gpus)).sum()
        return Clusters(
            experts=experts,
            requests=requests,
            objective=float(THETA * uneven + (1 - THETA) * (near.sum() - here) / self.layers),
            local=float(here / near.sum()),
        )


def _round(world: _World, requests: IntArray) -> Clusters:
    return world.clusters(_experts(world, world.near_experts(requests)))


def _experts(world: _World, near: FloatArray) -> IntArray:
    """[layers, experts] the GPU of each expert, all layers at once.

    near: [layers, experts, gpus] affinity to the requests of each GPU
    """
    layers, gpus = np.arange(world.layers), world.gpus
    # Scores are times top_k - 1: affinities are then whole numbers, exact in any order.
    near = near * world.others
    dear = LOAD * world.others * gpus / world.load.sum(axis=1, keepdims=True)
    affinity, load = near.copy(), np.zeros((world.layers, gpus))
    free = np.full((world.layers, gpus), -(-world.experts // gpus))
    chosen = np.empty((world.layers, world.experts), dtype=np.intp)
    for expert in np.argsort(-world.load, axis=1, kind="stable").T:
        own = world.load[layers, expert]
        score = affinity[layers, expert] - dear * load * own[:, None]
        open_to = (free > 0) & (world.node_of_gpu == world.node[expert][:, None])
        gpu = np.where(open_to, score, -np.inf).argmax(axis=1)
        chosen[layers, expert] = gpu
        load[layers, gpu] += own
        free[layers, gpu] -= 1
        affinity[layers, :, gpu] += world.together[layers, expert]
    return _swapped(world, near, chosen, dear)


def _swapped(world: _World, near: FloatArray, chosen: IntArray, dear: FloatArray) -> IntArray:
    """``chosen`` after each expert's best swap inside its layer, until no swap pays."""
    chosen, layers = chosen.copy(), np.arange(world.layers)
    held = np.eye(world.gpus)[chosen]
    score = near + world.together @ held
    load = np.einsum("le,leg->lg", world.load, held)
    swapped = True
    while swapped:
        swapped = False
        for expert in range(world.experts):
            here, together = chosen[:, expert, None], world.together[:, expert]
            lighter = world.load[:, expert, None] - world.load
            fuller = np.take_along_axis(load, chosen, 1) - np.take_along_axis(load, here, 1)
            own = np.take_along_axis(score, chosen[:, :, None], 2)[:, :, 0]
            gain = np.take_along_axis(score[:, expert], chosen, 1) - own[:, expert, None]
            gain += score[layers, :, here[:, 0]] - own - 2 * together
            gain -= dear * lighter * (lighter + fuller)
            gain[:, world.node != world.node[expert]] = -np.inf
            other = gain.argmax(axis=1)
            layer = np.nonzero(gain[layers, other] > NOTHING)[0]
            if not len(layer):
                continue
            swapped, other = True, other[layer]
            left, joined = chosen[layer, expert], chosen[layer, other]
            chosen[layer, expert], chosen[layer, other] = joined, left
            difference = lighter[layer, other]
            load[layer, left] -= difference
            load[layer, joined] += difference
            change = together[layer] - world.together[layer, other]
            score[layer, :, left] -= change
            score[layer, :, joined] += change
    return chosen


def _requests(world: _World, near: FloatArray, layers: Sequence[int]) -> IntArray:
    """[sequences] the GPU of each.

    near: [sequences, gpus] activations on each GPU, in those ``layers``
    """
    gpus, tokens = world.gpus, world.tokens
    local, even = near * (1 - THETA), THETA * len(layers)
    used = world.used[:, layers].reshape(len(near), -1)
    # What tokens of each GPU's requests use, and how many there are.
    theirs, owned = np.zeros((gpus, used.shape[1])), np.zeros(gpus)
    found = np.empty(len(near), dtype=np.intp)
    share = tokens.sum() / gpus
    for request in np.argsort(-tokens, kind="stable").tolist():
        joins = np.abs(owned + tokens[request] - share) - np.abs(owned - share)
        alike = theirs @ used[request] / np.maximum(owned, 1)
        gpu = (local[request] + (1 - THETA) * alike - even * joins).argmax()
        found[request] = gpu
        theirs[gpu] += used[request]
        owned[gpu] += tokens[request]
    return _moved(found, local, tokens, even)


def _moved(requests: IntArray, local: FloatArray, times: IntArray, even: float) -> IntArray:
    """``requests`` after the best move of a single one, again and again while it pays."""
    found, rows, gpus = requests.copy(), np.arange(len(requests)), local.shape[1]
    for _ in range(MOVES):
        excess = _excess(found, times, gpus)
        joins = np.abs(excess + times[:, None]) - np.abs(excess)
        leaves = np.abs(excess[found] - times) - np.abs(excess[found])
        gain = local - even * joins - (local[rows, found] + even * leaves)[:, None]
        gain[rows, found] = 0
        request, gpu = divmod(int(gain.argmax()), gpus)
        if gain[request, gpu] <= NOTHING:
            break
        found[request] = gpu
    return found


def _excess(requests: IntArray, times: IntArray, gpus: int) -> FloatArray:
    """[gpus] tokens beyond an even share."""
    return np.bincount(requests, times, gpus) - times.sum() / gpus


@dataclass(frozen=True, slots=True, eq=False)
class Votes:
    """T of tokens, counted from the requests that they are in.

    device:     [rows] the GPU that owns most of a token's occurrences; the last row is for tokens
                that are not known, with no vote
    confidence: [rows] T_p, its share of them; 0 in the last
    """

    vocabulary: Vocabulary
    device: IntArray
    confidence: FloatArray

    def of_requests(self, tokens: IntArray, seq_lens: IntArray, gpus: int) -> FloatArray:
        """[sequences, gpus] how many of each request's tokens vote for each GPU.
        tokens: identities, sequence after sequence"""
        rows = self.vocabulary.rows(tokens)
        votes = np.eye(gpus)[self.device[rows]] * (self.confidence[rows] > 0)[:, None]
        summed: FloatArray = np.add.reduceat(votes, np.cumsum(seq_lens) - seq_lens, axis=0)
        return summed


def votes(trace: Trace, requests: IntArray, gpus: int) -> Votes:
    """The table of a trace's tokens whose requests are in these clusters, [sequences]."""
    tokens, kind, times = np.unique(token_identity(trace), return_inverse=True, return_counts=True)
    cells = kind * gpus + np.repeat(requests, trace.seq_lens)
    counts = np.bincount(cells, minlength=len(tokens) * gpus).reshape(-1, gpus)
    return Votes(
        Vocabulary(tokens, np.arange(len(tokens))),
        np.append(counts.argmax(axis=1), 0),
        np.append(counts.max(axis=1) / times, 0.0),
    )
