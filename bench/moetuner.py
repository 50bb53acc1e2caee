"""MoETuner in the setting of its paper: Mixtral on 4 GPUs, one of which is hot in every layer."""

import time

import numpy as np
from rich.table import Table

from bench.timing import console
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

GPUS, TOKENS, SEEDS = 4, 16_000, range(10)
HOT = (0.64, 0.69)  # a layer's tokens on one GPU, as the paper measured
PUBLISHED = {  # less than before: load and all-to-all, their tails and averages
    1: ("-36.0%", "-34.8%", "-36.3%", "-35.4%"),
    2: ("-27%", "-22.5%", "-30.5%", "-24.7%"),
}
FIGURES = ("load, tail", "load, average", "all-to-all, tail", "all-to-all, average")


def run() -> None:
    for nodes in (1, 2):
        table = Table(
            title=f"moetuner, Mixtral (32 x 8) on {GPUS} GPUs in {nodes} node(s), "
            f"{HOT[0]:.0%} to {HOT[1]:.0%} of a layer's tokens on one GPU; mean of {len(SEEDS)}",
            title_justify="left",
        )
        for name in ("", *FIGURES, "experts a GPU", "solved, ms"):
            table.add_column(name, justify="right")
        for uneven in (False, True):
            found = np.array([_figures(hot(seed), nodes, uneven) for seed in SEEDS])
            *less, fewest, most, ms = found.mean(axis=0)
            table.add_row(
                "uneven sizes" if uneven else "even sizes",
                *(f"{one - 1:+.1%}" for one in less),
                f"{fewest:.1f} to {most:.1f}",
                f"{ms:.0f}",
            )
        table.add_row("published", *PUBLISHED[nodes], "64", "")
        console.print(table)


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


def _figures(profile: Profile, nodes: int, uneven: bool) -> list[float]:
    """FIGURES over the linear placement's, the fewest and most experts of a GPU, milliseconds."""
    problem = Problem(
        model=model.preset("mixtral-8x7b"),
        topology=topology.preset("h100").resized(GPUS, nodes),
        profile=profile,
        slots=profile.experts,
        objective=Objective(uneven=uneven),
    )
    begun = time.perf_counter()
    solution = solve(problem, "moetuner")
    solve_ms = (time.perf_counter() - begun) * 1e3
    assert isinstance(solution, Solution)
    experts = solution.placement.copies.sum(axis=(0, 1))
    before, after = (_waits(problem, one) for one in (problem.linear, solution.placement))
    return [*(after / before), float(experts.min()), float(experts.max()), solve_ms]


def _waits(problem: Problem, placement: Placement) -> FloatArray:
    """[4] what layers wait for: the busiest GPU's tokens and the busiest pair's, which MoETuner
    evens out; each in the worst layer and in the mean of layers."""
    assert problem.profile.transitions is not None
    on = placement.copies.astype(np.float64)
    pairs = on[:-1].transpose(0, 2, 1) @ problem.profile.transitions @ on[1:]
    load = rank_load(problem.profile.load, placement).max(axis=1)
    sent = (pairs * link_times(problem.topology)).max(axis=(1, 2))
    return np.array([load.max(), load.mean(), sent.max(), sent.mean()])
