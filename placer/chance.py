"""What planning seems to win where there is nothing to win.

A plan that is judged on the recording it was made from has fitted the recording's chance, too. How
much that is says a recording of a router that chooses every expert alike, as long as the given one
and planned in the same way: whatever that wins is chance (a bootstrap under the null hypothesis;
Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

Tokens of a sequence resemble each other: a recording counts as long as one of independent tokens
whose loads would be as uncertain.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import floor, log2

import numpy as np
from scipy.special import stdtrit

from placer.cost import layer_seconds
from placer.errors import PlacementError
from placer.placement import Placement
from placer.plan import Infeasible
from placer.planner import solve
from placer.problem import Problem
from placer.profile import Profile, of_trace
from placer.trace import Trace

SIZES = 8  # of recordings that are drawn, from one to twice as many tokens
LAYERS = 16  # that are drawn, enough to tell how much they differ
TOKENS = 8192  # drawn at most: of longer recordings, what chance wins shrinks as 1 / sqrt(tokens)


@dataclass(frozen=True, slots=True)
class Chance:
    """Seconds a step that a plan seems to win on chance: ``seconds``, and the standard error with
    which another recording's are known from that, of ``freedom`` degrees of freedom."""

    seconds: float
    error_s: float
    freedom: int


def quantile(freedom: int, chance: float) -> float:
    """Standard errors that chance exceeds with the probability ``chance`` (Student's t)."""
    return float(-stdtrit(freedom, chance))


def fitted(problem: Problem, optimizer: str, reference: Placement) -> Chance:
    """What the problem's plan would win over ``reference`` if its recording were chance.

    reference: a placement of the problem's layers on its GPUs

    Raises PlacementError if chance cannot be planned within the problem's limits.
    """
    drawn = _drawn(problem.profile)
    null = of_layers(problem, drawn)
    solution = solve(null, optimizer)
    if isinstance(solution, Infeasible):
        raise PlacementError(solution.reason)
    won = layer_seconds(null, _tiled(reference, LAYERS)) - layer_seconds(null, solution.placement)
    won = won * min((drawn.tokens / independent_tokens(problem.profile)) ** 0.5, 1.0)
    layers = int(problem.profile.load.any(axis=1).sum())
    # Of the sum over other layers, as many as the recording has, beside the mean of those drawn.
    error = float(np.std(won, ddof=1)) * (layers + layers**2 / LAYERS) ** 0.5
    return Chance(layers * float(won.mean()), error, LAYERS - 1)


def of_layers(problem: Problem, profile: Profile) -> Problem:
    """The problem with another profile's layers, and for each as much room and effort."""
    model, gpu, layers = problem.model, problem.topology.gpu, profile.layers
    more = layers / model.layers
    return replace(
        problem,
        model=replace(model, layers=layers, moe_layers=(), hidden_layers=0),
        topology=replace(
            problem.topology, gpu=replace(gpu, hbm_bytes=round(gpu.hbm_bytes * max(more, 1)))
        ),
        profile=profile,
        current=problem.current and _tiled(problem.current, layers),
        effort=replace(problem.effort, iterations=int(problem.effort.iterations * more)),
        trace=None,
    )


def even(profile: Profile) -> Profile:
    """A layer of which every expert is known to be chosen alike."""
    experts, k, tokens = profile.experts, profile.top_k, float(2**40)
    pairs = tokens * k * (k - 1) / (experts * max(experts - 1, 1))
    return Profile(
        load=np.full((1, experts), tokens * k / experts),
        top_k=k,
        tokens=tokens,
        sequences=0,
        coactivation=(pairs * (1 - np.eye(experts)))[None],
        phase=profile.phase,
    )


def independent_tokens(profile: Profile) -> float:
    """Tokens, drawn each by itself, whose loads would be as uncertain as the profile's."""
    load = profile.load[profile.load.any(axis=1)]
    alone = float((load / profile.tokens**2).sum())
    alike = max(float(profile.noise.variance.sum()) / alone, 1.0)
    return float(load.sum(axis=1).mean()) / profile.top_k / alike


def _drawn(profile: Profile) -> Profile:
    """Chance, with no more told of it than of ``profile``."""
    tokens = min(max(independent_tokens(profile), 1.0), TOKENS)
    found = _draw(profile.experts, profile.top_k, int(2 ** (floor(log2(tokens) * SIZES) / SIZES)))
    return replace(
        found,
        transitions=None if profile.transitions is None else found.transitions,
        coactivation=None if profile.coactivation is None else found.coactivation,
        spread=None if profile.spread is None else found.spread,
        phase=profile.phase,
        window_s=profile.window_s,
        pace=profile.pace,
    )


@lru_cache(maxsize=4)
def _draw(experts: int, top_k: int, tokens: int) -> Profile:
    lots = np.random.default_rng(0)
    ids = np.empty((tokens, LAYERS, top_k), dtype=np.int16)
    for layer in range(LAYERS):
        keys = lots.random((tokens, experts), dtype=np.float32)
        ids[:, layer] = keys.argpartition(top_k - 1, axis=1)[:, :top_k]
    return of_trace(Trace(ids, np.ones(tokens, dtype=np.int64), experts))


def _tiled(placement: Placement, layers: int) -> Placement:
    """As many layers, from the first and over again."""
    rows = np.arange(layers) % placement.layers
    table = placement.physical_to_logical[rows]
    return Placement(table, placement.experts, placement.gpus, placement.nodes)
