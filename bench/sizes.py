"""How long planning takes at the sizes of real models, and how much memory."""

import resource
from statistics import median
from time import perf_counter

import numpy as np
from rich.table import Table

from bench.timing import console
from placer import model, topology
from placer.objective import Dispatch, Objective
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace

# Optimizer, model, GPUs, redundant slots, dispatch.
CASES: list[tuple[str, str, int, int, Dispatch]] = [
    ("moetuner", "mixtral-8x7b", 4, 0, "coherent"),
    ("exflow", "mixtral-8x7b", 4, 0, "coherent"),
    ("joint", "mixtral-8x7b", 4, 0, "dedup"),
    ("joint", "deepseek-v2-lite", 8, 0, "dedup"),
    ("joint", "deepseek-v2-lite", 8, 16, "dedup"),
    ("joint", "deepseek-v3", 32, 32, "allgather"),
    ("joint", "deepseek-v3", 32, 32, "dedup"),
]
TOKENS, ROUNDS = 8_000, 3


def run() -> None:
    table = Table(title=f"Planning from {TOKENS:,} tokens of clustered random routing")
    for name in ("optimizer", "model", "slots", "GPUs", "dispatch", "solved, s", "peak MB so far"):
        table.add_column(name, justify="right")
    table.add_column("what it says of its bound")
    for name, shape, gpus, redundant, dispatch in CASES:
        problem = _problem(shape, gpus, redundant, dispatch)
        times = []
        for _ in range(ROUNDS):
            begun = perf_counter()
            solution = solve(problem, name)
            times.append(perf_counter() - begun)
        assert isinstance(solution, Solution)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        cells = [name, shape, str(problem.slots), str(gpus), dispatch]
        said = "; ".join(solution.notes) or "none is stated"
        table.add_row(*cells, f"{median(times):.2f}", f"{peak:.0f}", said)
    console.print(table)


def _problem(name: str, gpus: int, redundant: int, dispatch: Dispatch) -> Problem:
    shape = model.preset(name)
    profile = of_trace(clustered(shape.layers, shape.experts, shape.top_k))
    where = topology.preset("h100").resized(gpus)
    slots = shape.experts + redundant
    return Problem(shape, where, profile, slots, Objective(dispatch))


def clustered(layers: int, experts: int, top_k: int) -> Trace:
    """Tokens of 16 kinds, each of which likes some experts of every layer."""
    rng = np.random.default_rng(0)
    likes = rng.normal(0, 1.5, (16, layers, experts))
    kinds = np.repeat(rng.integers(16, size=TOKENS // 100), 100)
    ids = np.empty((TOKENS, layers, top_k), dtype=np.int64)
    for layer in range(layers):
        noise = rng.gumbel(size=(TOKENS, experts)) + likes[kinds, layer]
        ids[:, layer] = np.argsort(-noise, axis=1)[:, :top_k]
    return Trace(ids, np.full(TOKENS // 100, 100), experts)
