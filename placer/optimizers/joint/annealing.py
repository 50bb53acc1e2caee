"""Where a search begins, how long it takes, and how layers that depend on each other take turns."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from placer.arrays import IntArray
from placer.cost import score
from placer.optimizers.joint import terms
from placer.optimizers.joint.relabel import follow
from placer.optimizers.joint.search import Layer, Rules, Schedule, anneal
from placer.placement import Placement
from placer.problem import Problem

# Temperatures, as shares of what a random exchange costs. A running plan is only touched up.
HOTTEST, HOT, WARM, COLD = 1.0, 0.1, 0.02, 0.003
TURNS = 6  # of even and odd layers, where they depend on each other
ENOUGH = 50  # iterations for each two slots,
A_SLOT = 1.5  # or for each two as many for each slot, in a small world
LEAST = 1_000  # even for the smallest,
SMALL = 10_000  # and where there are replicas
STARTS = 8  # where layers depend on each other, as far as the budget goes
BALANCE = 8  # times fewer exchanges are enough where only balance counts
REPLICAS = 4  # times as long an exchange takes where replicas share by the dispatch rule
THREADS = 2


def search(
    problem: Problem,
    layers: list[Layer],
    table: IntArray,
    hot: float = HOT,
    chosen: range | None = None,
) -> IntArray:
    """[layers, slots] the best found from ``table``; of the chosen layers, if they are alone."""
    rules = terms.rules(problem, layers)
    first = hot if problem.current is None else COLD
    dear = REPLICAS if rules.by_rule else 1
    if not len(layers[0].pairs):  # only balance counts: tightening does most of it
        dear *= BALANCE
    enough = int(min(ENOUGH, A_SLOT * problem.slots) * problem.slots**2) // dear
    small = enough <= SMALL
    budget = problem.effort.iterations // len(table) // dear
    iterations = min(budget, max(enough, SMALL if problem.slots > problem.model.experts else LEAST))
    if small and problem.current is None and hot == HOT:
        first = HOTTEST
    schedule = Schedule(iterations, first, COLD, problem.seed, small)
    if not terms.is_coherent(problem):
        mine = chosen or range(len(layers))
        return _anneal({at: layers[at] for at in mine}, rules, schedule, table)
    starts = min(max(budget // max(iterations, 1), 1), STARTS) if problem.current is None else 1
    seeds = range(problem.seed, problem.seed + starts)
    tables = [_in_turns(problem, layers, schedule._replace(seed=seed), table) for seed in seeds]
    return fastest(replace(problem, trace=None), tables)  # of which a search knows nothing


def _in_turns(
    problem: Problem, layers: list[Layer], schedule: Schedule, table: IntArray
) -> IntArray:
    """[layers, slots] where layers depend on each other: first by themselves, then even and odd."""
    rules, iterations = terms.rules(problem, layers), schedule.iterations
    if problem.current is None:
        alone, half = rules._replace(coherent=False), schedule._replace(iterations=iterations // 2)
        table = follow(problem, _anneal(dict(enumerate(layers)), alone, half, table))
    schedule = schedule._replace(iterations=iterations // TURNS, hot=min(schedule.hot, WARM))
    for turn in range(TURNS):
        mine = dict(list(enumerate(terms.with_neighbours(problem, layers, table)))[turn % 2 :: 2])
        table = _anneal(mine, rules, schedule, table)
    return table


def _anneal(
    layers: dict[int, Layer], rules: Rules, schedule: Schedule, table: IntArray
) -> IntArray:
    """``table`` with the given layers annealed, each with a seed of its own."""
    table = table.copy()

    def some(chosen: list[int]) -> None:
        for at in chosen:
            seeded = schedule._replace(seed=schedule.seed * len(table) + at)
            table[at] = anneal(layers[at], rules, seeded, table[at])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(some, (list(layers)[first::THREADS] for first in range(THREADS))))
    return table


def fastest(problem: Problem, tables: list[IntArray]) -> IntArray:
    """By the score."""
    if len(tables) == 1:
        return tables[0]
    return min(tables, key=lambda table: step_s(problem, problem.placement(table)))


def step_s(problem: Problem, placement: Placement) -> float:
    known = problem.profile.unknown is None  # a trace says nothing of traffic that it lacks
    return score(problem, placement, problem.trace if known else None, only_timed=True).step_s
