"""MoETuner (arXiv 2502.06643): Mixtral on 4 GPUs, one of which is hot in every layer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from placer import model, topology
from placer.arrays import FloatArray
from placer.cost.balance import rank_load
from placer.objective import Objective
from placer.optimizers.moetuner.layout import link_times
from placer.placement import Placement
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import Profile
from simulations.papers.table import Row, Table

GPUS, TOKENS = 4, 16_000
HOT = (0.64, 0.69)  # a layer's tokens on one GPU, as the paper measured
FAR = 0.05  # of what was before: further off, a row says why
FIGURES = ("load, tail", "load, average", "all-to-all, tail", "all-to-all, average")
PUBLISHED = {1: (-0.36, -0.348, -0.363, -0.354), 2: (-0.27, -0.225, -0.305, -0.247)}  # by nodes
WHY = {  # by figure
    "load, tail": "In the worst layer one expert has up to half of the tokens, and there are no "
    "replicas to share them.",
    "load, average": "Two nodes do not change how even loads are; the paper's runs there were of "
    "other traffic.",
    "all-to-all, tail": "Ours counts the busiest pair's tokens; the paper timed whole collectives, "
    "of which a part is saved by no placement.",
    "all-to-all, average": "As its tail.",
}


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    return [table(nodes, seeds) for nodes in PUBLISHED]


def table(nodes: int, seeds: int) -> Table:
    many = "s" * (nodes > 1)
    profiles = [hot(seed) for seed in range(seeds)]
    before = [profile.load.reshape(len(profile.load), GPUS, -1).sum(axis=2) for profile in profiles]
    share = np.mean([(one.max(axis=1) / one.sum(axis=1)).mean() for one in before])
    rows = [
        Row("a layer's tokens on one GPU, before", HOT, float(share), "calibrated", "{:.1%}"),
    ]
    for sizes, uneven in (("even sizes", False), ("uneven sizes", True)):
        found = np.mean([figures(profile, nodes, uneven) for profile in profiles], axis=0) - 1
        for at, (name, published) in enumerate(zip(FIGURES, PUBLISHED[nodes], strict=True)):
            ours = float(found[at])
            why = WHY[name] if abs(ours - published) > FAR else ""
            rows.append(Row(f"{sizes}: {name}", (published,), ours, "predicted", why=why))
    return Table(
        f"MoETuner, {nodes} node{many}",
        f"Mixtral-8x7B, 32 layers x 8 experts, top-2, on {GPUS} H100s in {nodes} node{many}, drawn "
        "so that the linear placement has one hot GPU a layer; what layers wait for (the busiest "
        "GPU's tokens, the busiest pair's all-to-all) against the linear placement's, in the worst "
        "layer (tail) and in the mean of layers (average).",
        rows,
    )


def hot(seed: int) -> Profile:
    """Top-2 routing in which the linear placement has one hot GPU a layer, and experts follow each
    other at random."""
    shape = model.preset("mixtral-8x7b")
    rng = np.random.default_rng(seed)
    size = shape.experts // GPUS
    share = np.empty((shape.layers, shape.experts))
    for row in share:
        total, gpu = rng.uniform(*HOT), int(rng.integers(GPUS))
        first = rng.uniform(total / size, 1 / shape.top_k)  # more than all tokens none can have
        own = np.arange(shape.experts) // size == gpu
        row[own] = rng.permutation([first, total - first])
        row[~own] = (1 - total) * rng.dirichlet(np.ones(shape.experts - size))
    follows = rng.exponential(size=(shape.layers - 1, shape.experts, shape.experts)) ** 2
    for _ in range(200):  # Sinkhorn: the sums must be the experts' shares
        follows *= (share[:-1] / follows.sum(axis=2))[:, :, None]
        follows *= (share[1:] / follows.sum(axis=1))[:, None, :]
    return Profile(
        TOKENS * shape.top_k * share,
        shape.top_k,
        tokens=TOKENS,
        sequences=1,
        transitions=TOKENS * follows,
    )


def figures(profile: Profile, nodes: int, uneven: bool) -> FloatArray:
    """[4] FIGURES over the linear placement's."""
    problem = Problem(
        model=model.preset("mixtral-8x7b"),
        topology=topology.preset("h100").resized(GPUS, nodes),
        profile=profile,
        slots=profile.experts,
        objective=Objective(uneven=uneven),
    )
    solution = solve(problem, "moetuner")
    assert isinstance(solution, Solution)
    before, after = (waits(problem, one) for one in (problem.linear, solution.placement))
    return after / before


def waits(problem: Problem, placement: Placement) -> FloatArray:
    """[4] what layers wait for: the busiest GPU's tokens and the busiest pair's, which MoETuner
    evens out; each in the worst layer and in the mean of layers."""
    assert problem.profile.transitions is not None
    on = placement.copies.astype(np.float64)
    pairs = on[:-1].transpose(0, 2, 1) @ problem.profile.transitions @ on[1:]
    load = rank_load(problem.profile.load, placement).max(axis=1)
    sent = (pairs * link_times(problem.topology)).max(axis=(1, 2))
    return np.array([load.max(), load.mean(), sent.max(), sent.mean()])
