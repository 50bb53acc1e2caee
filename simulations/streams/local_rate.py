"""How many activations find their expert at home: LAR, over what the least loaded gets (1/G)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from controller.router.scheduling.baselines import similarity, votes
from controller.router.scheduling.decide import SCHEDULERS
from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.scheduler import Scheduler
from placer.arrays import FloatArray, IntArray
from placer.cost.homes import chosen
from placer.cost.requests import costs_of
from placer.placement import Placement
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.tables import TokenTable
from placer.tables.owning import local
from simulations.streams.at_home import made_for_lar
from simulations.streams.centroids import centroids, on_ranks
from simulations.streams.chosen import (
    drawn,
    foreseen,
    imbalance,
    local_activations,
    streamed,
)
from simulations.streams.worlds import Requests, World, table_of

STREAM, WINDOW = 3000, 8  # requests; of a window, a rank
HOMES = "joint+homes"  # joint of a profile that knows clusters of requests
AT_HOME = "lar"  # made for LAR alone


@dataclass(frozen=True, eq=False)
class Case:
    """One split: a plan and a table from one half of the requests, and the other half."""

    world: World
    fit: Requests
    judged: Requests
    problem: Problem
    placement: Placement
    table: TokenTable
    seed: int

    @property
    def gpus(self) -> int:
        return self.placement.gpus

    def scheduler(self, name: str) -> Scheduler:
        return Scheduler(
            [Engine("engine", self.gpus)], costs_of(self.problem), self.lookup(name), name
        )

    def lookup(self, name: str) -> Lookup:
        if name == "round_mask":
            values = votes(self.table, self.placement)
        elif name == "eldr":
            found = centroids(self.fit.served, self.gpus, self.seed)
            values = similarity(self.table, on_ranks(found, self.placement))
        else:
            values = local(self.table, self.placement)
        return Lookup.of(self.table.vocabulary, [values])


@lru_cache(maxsize=128)  # planning is most of the benchmark
def case(world: World, gpus: int, plan: str, redundant: int, seed: int) -> Case:
    fit, judged = world.halves(seed)
    problem = world.problem(fit.served, gpus, redundant, plan == HOMES)
    return Case(world, fit, judged, problem, placed(problem, plan), table_of(fit), seed)


def cases(world: World, gpus: int, plan: str, splits: int, redundant: int = 0) -> list[Case]:
    return [case(world, gpus, plan, redundant, seed) for seed in range(splits)]


def placed(problem: Problem, plan: str) -> Placement:
    if plan == AT_HOME:
        return made_for_lar(problem)
    solution = solve(problem, "joint" if plan == HOMES else plan)
    if not isinstance(solution, Solution):
        raise SystemExit(f"{plan}: {solution.reason}")
    return solution.placement


def rates(case: Case) -> dict[str, float]:
    """By schedule: LAR times the GPUs; of streams also the imbalance of their tokens, of all and in
    windows."""
    lens = case.judged.served.seq_lens.astype(np.float64)
    true = local_activations(case.judged, case.placement)
    guess = foreseen(case.table, local(case.table, case.placement), case.judged)
    found = {}
    for name, gain in (("oracle, offline", true * lens[:, None]), ("table, offline", guess)):
        home = chosen(gain, case.judged.served.seq_lens)
        found[name] = _rate(true, lens, home) * case.gpus
    order = drawn(STREAM, len(lens), case.seed)
    for name in SCHEDULERS:
        stream = streamed(
            case.scheduler(name), case.judged, order, case.world.decodes, WINDOW * case.gpus
        )
        found[name] = _rate(true[order], lens[order], stream.rank) * case.gpus
        for window in (None, WINDOW * case.gpus):
            key = f"{name}, {'windows' if window else 'all'}"
            found[key] = imbalance(lens[order], stream.rank, case.gpus, window)
    return found


def best_found(case: Case, plan: str) -> float:
    """Of a plan made from the half that it is judged on, scheduled by an oracle."""
    trace = case.judged.served
    placement = placed(case.world.problem(trace, case.gpus, 0, plan == HOMES), plan)
    true, lens = local_activations(case.judged, placement), trace.seq_lens.astype(np.float64)
    return _rate(true, lens, chosen(true * lens[:, None], trace.seq_lens)) * case.gpus


def _rate(local: FloatArray, lens: FloatArray, home: IntArray) -> float:
    mine = local[np.arange(len(home)), home]
    return float((mine * lens).sum() / lens.sum())
