"""cocluster: tokens and experts that belong together, on one GPU (Speculative MoE, Sem-MoE).

Tokens are clustered as experts are, a cluster of each to a GPU, so that a scheduler that knows a
token can send it where most of its experts are (placer/tables.py). Minimised is

    theta * sum_i |sum_j R[i,j] a_j - total / G|
    + (1 - theta) * sum_{i1 != i2} sum_j sum_k R[i1,j] C[i2,k] C_p[j,k] a_j

R[i,j] token j is in cluster i, C[i,k] expert k is, a_j occurrences of the token, C_p[j,k] its
chance to be routed to the expert. The first term counts tokens away from an even share, the second
activations that leave their token's GPU.

Readings (ours). A token is a vocabulary id (``tables.token_identity``) and has one cluster for all
layers, since a request has one GPU; experts are clustered in each layer, E / G to a GPU. The second
term is the mean over layers, and theta is 0.5. Tokens move singly where experts swap: their
clusters are held even by the first term, not by a number of places. Load has weight 8 in an
expert's score: on DeepSeek-V2-Lite and 8 GPUs that takes activations local to a token's best GPU
from 37% to 34%, and balancedness from 69% to 91% (held out). With ``keep_groups`` an expert stays
on the node where the linear placement has it.

Solver, alternating. Experts: heaviest first, each to the cluster of the highest score among those
not full; the score is its affinity to the experts there (tokens that use both, over top_k - 1),
plus its affinity to the tokens there, less the load there; then swaps inside a layer while the sum
of scores grows. Tokens: most frequent first, by the objective; then the best moves. The first token
clusters follow the experts of one layer: a few layers are tried, ``seed`` says which, and the best
is carried on. Returned are the best clusters met, linear among them.

Input: the tokens of ``problem.trace``. Source: arXiv 2503.04398. Cost: 2 * (STARTS + ROUNDS) passes
over the trace, layers * experts**2 * gpus a sweep of swaps. It loses where balance is all that
counts (eplb), where no scheduler uses the tables, and on tokens that the trace lacks; it has no
replicas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray, IntArray, frozen
from placer.errors import RoutingError
from placer.plan import Solution
from placer.problem import Problem
from placer.profile import of_trace
from placer.tables import token_identity
from placer.trace import Trace

THETA = 0.5
LOAD = 8.0
STARTS, ROUNDS = 4, 6
MOVES = 50  # of single tokens, a token step
NOTHING = 1e-6  # activations: below it a gain is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Who stands on which GPU.

    experts:   [layers, experts]
    tokens:    [kinds] tokens in the order of their identities
    objective: the formula above; local: share of activations on their token's GPU
    """

    experts: IntArray
    tokens: IntArray
    objective: float
    local: float

    def __post_init__(self) -> None:
        for name in ("experts", "tokens"):
            object.__setattr__(self, name, frozen(getattr(self, name)))


def optimize(problem: Problem) -> Solution:
    start, best = cocluster(problem)
    notes = [
        f"objective {start.objective:,.0f} -> {best.objective:,.0f} (linear, then co-clustered; "
        f"theta {THETA:g}): tokens find {start.local:.1%} -> {best.local:.1%} of their experts on "
        "their own cluster's GPU"
    ]
    if redundant := problem.slots - problem.model.experts:
        notes.append(f"{redundant} redundant slots a layer stay empty: cocluster has no replicas")
    return Solution(problem.partition(best.experts), notes=tuple(notes))


def cocluster(problem: Problem) -> tuple[Clusters, Clusters]:
    """The clusters of the linear placement, and the best that were found."""
    if problem.trace is None:
        raise RoutingError("cocluster needs tokens and a profile has none: give traces")
    world = _World(problem, problem.trace)
    linear = world.clusters(np.tile(world.linear, (world.layers, 1)))
    alone = _experts(world, np.zeros((world.layers, world.experts, world.gpus), dtype=np.int64))
    layers = np.random.default_rng(problem.seed).permutation(world.layers)[:STARTS]
    starts = [_tokens(world.near_tokens(alone, [layer]), world.times, 1) for layer in layers]
    found = [_round(world, tokens) for tokens in starts]
    latest = min(found, key=lambda clusters: clusters.objective)
    best = [linear, latest]
    for _ in range(ROUNDS):
        latest = _round(world, latest.tokens)
        best.append(latest)
    return linear, min(best, key=lambda clusters: clusters.objective)


class _World:
    """Who uses what: the tokens of a trace by kind, and the GPUs that clusters stand on."""

    def __init__(self, problem: Problem, trace: Trace) -> None:
        _, self.kind, self.times = np.unique(
            token_identity(trace), return_inverse=True, return_counts=True
        )
        self.ids = trace.expert_ids
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

    def near_experts(self, tokens: IntArray) -> IntArray:
        """[layers, experts, gpus] activations of each expert by each GPU's tokens."""
        near = np.empty((self.layers, self.experts, self.gpus), dtype=np.int64)
        for layer in range(self.layers):
            row = self.ids[:, layer].astype(np.intp) * self.gpus
            near[layer] = _count(row + tokens[self.kind][:, None], self.experts, self.gpus)
        return near

    def near_tokens(self, experts: IntArray, layers: Sequence[int]) -> IntArray:
        """[kinds, gpus] activations of each token by each GPU's experts, in some layers."""
        row = self.kind[:, None] * self.gpus
        kinds = len(self.times)
        near = np.zeros((kinds, self.gpus), dtype=np.int64)
        for layer in layers:
            near += _count(row + experts[layer][self.ids[:, layer]], kinds, self.gpus)
        return near

    def clusters(self, experts: IntArray) -> Clusters:
        """With the tokens where these experts want them."""
        near = self.near_tokens(experts, range(self.layers))
        tokens = _tokens(near, self.times, self.layers)
        here = near[np.arange(len(near)), tokens].sum()
        uneven = np.abs(_excess(tokens, self.times, self.gpus)).sum()
        return Clusters(
            experts=experts,
            tokens=tokens,
            objective=float(THETA * uneven + (1 - THETA) * (near.sum() - here) / self.layers),
            local=float(here / near.sum()),
        )


def _round(world: _World, tokens: IntArray) -> Clusters:
    return world.clusters(_experts(world, world.near_experts(tokens)))


def _experts(world: _World, near: IntArray) -> IntArray:
    """[layers, experts] the GPU of each expert, all layers at once.

    near: [layers, experts, gpus] affinity to the tokens of each GPU
    """
    layers, gpus = np.arange(world.layers), world.gpus
    # Scores are times top_k - 1: affinities are then whole numbers, exact in any order.
    near = near * world.others
    dear = LOAD * world.others * gpus / world.load.sum(axis=1, keepdims=True)
    affinity, load = near.astype(np.float64), np.zeros((world.layers, gpus))
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


def _swapped(world: _World, near: IntArray, chosen: IntArray, dear: FloatArray) -> IntArray:
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


def _tokens(near: IntArray, times: IntArray, layers: int) -> IntArray:
    """[kinds] the GPU of each token.

    near:  [kinds, gpus] activations on each GPU, in that many ``layers``
    times: [kinds] occurrences
    """
    kinds, gpus = near.shape
    local, even = near.astype(np.float64) * (1 - THETA), THETA * layers
    excess = np.full(gpus, -times.sum() / gpus)
    tokens = np.empty(kinds, dtype=np.intp)
    for kind in np.argsort(-times, kind="stable").tolist():
        joins = np.abs(excess + times[kind]) - np.abs(excess)
        gpu = (local[kind] - even * joins).argmax()
        tokens[kind] = gpu
        excess[gpu] += times[kind]
    return _moved(tokens, local, times, even)


def _moved(tokens: IntArray, local: FloatArray, times: IntArray, even: float) -> IntArray:
    """``tokens`` after the best move of a single one, again and again while it pays."""
    tokens, rows, gpus = tokens.copy(), np.arange(len(tokens)), local.shape[1]
    for _ in range(MOVES):
        excess = _excess(tokens, times, gpus)
        joins = np.abs(excess + times[:, None]) - np.abs(excess)
        leaves = np.abs(excess[tokens] - times) - np.abs(excess[tokens])
        gain = local - even * joins - (local[rows, tokens] + even * leaves)[:, None]
        gain[rows, tokens] = 0
        kind, gpu = divmod(int(gain.argmax()), gpus)
        if gain[kind, gpu] <= NOTHING:
            break
        tokens[kind] = gpu
    return tokens


def _excess(tokens: IntArray, times: IntArray, gpus: int) -> FloatArray:
    """[gpus] tokens beyond an even share."""
    return np.bincount(tokens, times, gpus) - times.sum() / gpus


def _count(cells: IntArray, rows: int, columns: int) -> IntArray:
    return np.bincount(cells.ravel(), minlength=rows * columns).reshape(rows, columns)
