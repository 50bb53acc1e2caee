"""exhaustive: every placement there is, scored one by one.

The oracle that tests hold the other optimizers against, and an answer whose gap is zero for
models of a few experts. Formula: the objective itself, ``score(...).step_s``. Cost: the number of
ways to fill a layer's GPUs, to the power of the layers; more than ``LIMIT`` is refused.
"""

from collections.abc import Iterator
from itertools import combinations, combinations_with_replacement, product
from math import comb

import numpy as np

from placer.cost import score
from placer.errors import PlacementError
from placer.plan import Solution
from placer.problem import Problem

LIMIT = 50_000
LAYER_LIMIT = 2_000_000  # ways to fill a layer, with those that lose an expert


def optimize(problem: Problem) -> Solution:
    rows = list(_rows(problem))
    if len(rows) ** problem.model.layers > LIMIT:
        raise _too_many(problem, len(rows) ** problem.model.layers, LIMIT)
    tables = product(rows, repeat=problem.model.layers)
    placements = (problem.placement(np.array(table)) for table in tables)
    step_s, best = min(
        ((score(problem, placement).step_s, placement) for placement in placements),
        key=lambda scored: scored[0],
    )
    return Solution(best, bound_s=step_s)


def _rows(problem: Problem) -> Iterator[tuple[int, ...]]:
    """The ways to fill one layer's slots, apart from the order inside a GPU."""
    experts, gpus = problem.model.experts, problem.topology.gpus
    size = problem.slots // gpus
    again = problem.objective.allow_duplicates
    ways = comb(experts + size - 1, size) if again else comb(experts, size)
    if ways**gpus > LAYER_LIMIT:
        raise _too_many(problem, ways**gpus, LAYER_LIMIT)
    choose = combinations_with_replacement if again else combinations
    for held in product(list(choose(range(experts), size)), repeat=gpus):
        row = tuple(expert for gpu in held for expert in gpu)
        if len(set(row)) == experts:
            yield row


def _too_many(problem: Problem, ways: int, limit: int) -> PlacementError:
    return PlacementError(
        f"exhaustive would try {ways:.1e} placements of {problem.model.dims} in {problem.slots} "
        f"slots, the limit is {limit:.0e}: use another --optimizer"
    )
