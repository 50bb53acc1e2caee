"""joint: replication, placement and traffic at once, in seconds a step.

Objective: the time of a step's layers in the traffic to come. Per layer it is

- the slowest GPU's experts: mean + z * rms of the GPUs' seconds, z being how far the slowest of G
  lies above the mean, and rms holding both today's deviations and the variance that sampling noise
  adds (the profile's own, once for the recording and once for the time to come). The experts of a
  GPU that rise and fall together make it noisy, so co-activated experts are not simply piled up;
- the slowest link: fan-out to GPUs and nodes from loads and co-activations
  (``visit_chance`` of cost), whose visits vary as the loads behind them do, or what the GPU sends
  that owns most tokens, if a trace tells; and latency. Under ``coherent`` less what is saved where
  an expert stands on the GPU that its tokens come from;
- the price of bringing an expert to a GPU, spread over the horizon, where a plan is running.

Method: per layer, simulated annealing over exchanges of two slots and over the expert that a
redundant slot holds, and then the best exchanges of the GPU that is furthest from the mean; from a
balanced start, or from the current plan, and never worse than that in this objective, nor, without
a guard, on the recording itself, whatever its noise. Where slots are enough for groups of GPUs that
hold all experts each, one group is also searched by itself, a smaller world with few replicas or
none, and the others are like it; the fastest by the score is taken. Layers are independent but
under ``coherent``, where GPUs are first relabelled along the layers and then even and odd layers
take turns. Deterministic for a seed and a number of iterations, the budget. A current plan is only
touched up, within the share of slots that may move.

With a guard, the rms also holds the variance of what is unknown of the traffic (guard.py).

Bound: balance alone has one, all GPUs alike; fan-out and hops have none that is cheap. The planner
says so, and how far the balance is from the bound.

It loses to ``exhaustive`` where that can finish, and by a hair in balance to ``eplb`` where traffic
costs time: it gives up balance that is within the noise for less traffic. Under ``coherent`` GPUs
that compute more also own more tokens, and their replicas serve those: over many layers tokens
gather further than can be told from pairs of layers, where many experts have replicas.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from placer.arrays import IntArray
from placer.cost import score
from placer.cost.moves import arrivals
from placer.cost.owned import Kinds, cluster_homes
from placer.optimizers.joint import terms, together
from placer.optimizers.joint.descent import Descent, descent
from placer.optimizers.joint.relabel import follow
from placer.optimizers.joint.search import Layer, Rules, Schedule, anneal, seconds_of, settle
from placer.optimizers.joint.start import group, replicas_wanted, replicated, start
from placer.placement import Placement
from placer.plan import Solution
from placer.problem import Problem

# Temperatures, as shares of what a random exchange costs. A running plan is only touched up.
HOTTEST, HOT, WARM, COLD = 1.0, 0.1, 0.02, 0.003
TURNS = 6  # of even and odd layers, where they depend on each other
TRIES, NEAR = 8, 0.7  # prices of moves that are tried, until so much of ``max_moved`` is used,
SAMPLE = 8  # on so many layers, or a few more, and then on all
HOME_TURNS = 2  # of the placement given requests' homes, and homes given the placement
TWICE = 2  # the load that a slot would need to have: exchanges alone did not come far then
FIRST = (0.01, 0.02, 0.05, 0.1, 0.2)  # shares of the slots, of which it is told what they win
STEEPEST = 16.0  # factor of the price from one try to the next
ENOUGH = 50  # iterations for each two slots,
A_SLOT = 1.5  # or for each two as many for each slot, in a small world
LEAST = 1_000  # even for the smallest,
SMALL = 10_000  # and where there are replicas
STARTS = 8  # where layers depend on each other, as far as the budget goes
BALANCE = 8  # times fewer exchanges are enough where only balance counts
REPLICAS = 4  # times as long an exchange takes where replicas share by the dispatch rule
THREADS = 2


def optimize(problem: Problem) -> Solution:
    layers, table = terms.layers(problem), start(problem)
    if problem.current is not None:
        found = _within_limit(problem, problem.current, layers, table)
    else:
        tables = [_search(problem, layers, table), *_grouped(problem, layers)]
        found = Solution(problem.placement(_fastest(problem, tables)))
    if problem.profile.clusters is None or problem.objective.dispatch != "dedup":
        return found
    return _with_homes(problem, layers, found)


def _grouped(problem: Problem, layers: list[Layer]) -> Iterator[IntArray]:
    """[layers, slots] groups of GPUs that hold all experts, alike, if there is room for that; and
    the best found from there, but where tokens stay with replicas: of that the search knows less.
    """
    if (part := group(problem)) is None:
        return
    one = _search(part, terms.layers(part), start(part))
    yield (table := np.tile(one, problem.slots // part.slots))
    if not terms.is_coherent(problem):
        yield _search(problem, layers, table, hot=WARM)


def _with_homes(problem: Problem, layers: list[Layer], plain: Solution) -> Solution:
    """``plain``, or what is faster by the score if a scheduler gives requests their homes."""
    kinds, first = Kinds.of(problem.profile), plain.placement
    best = together.Met(problem, plain)
    if problem.current is None:
        first = together.relabelled(problem, kinds, first)
        best.meet(replace(plain, placement=first))
    for turn in range(HOME_TURNS):
        homes = cluster_homes(problem.profile, first)
        theirs = terms.with_homes(problem, layers, kinds, homes)
        if problem.current is not None:
            best.meet(_within_limit(problem, problem.current, theirs, start(problem)))
            break
        table = first.physical_to_logical.astype(np.int64)
        found = _search(problem, theirs, table, hot=WARM if turn else HOT)
        first = problem.placement(found)
        best.meet(replace(plain, placement=first))
    return best.solution


def _fastest(problem: Problem, tables: list[IntArray]) -> IntArray:
    """By the score."""
    if len(tables) == 1:
        return tables[0]
    return min(tables, key=lambda table: _step_s(problem, problem.placement(table)))


def _step_s(problem: Problem, placement: Placement) -> float:
    known = problem.profile.unknown is None  # a trace says nothing of traffic that it lacks
    return score(problem, placement, problem.trace if known else None, only_timed=True).step_s


def _within_limit(
    problem: Problem, current: Placement, layers: list[Layer], table: IntArray
) -> Solution:
    """The best that moves no more than ``max_moved``, and what the first of its moves win."""
    rules = terms.rules(problem, layers)
    free = terms.with_neighbours(problem, layers, table) if terms.is_coherent(problem) else layers
    path = descent(free, rules, current, table, 0.0)
    first = tuple(
        (share, problem.placement(path.until(problem.further(share))))
        for share in FIRST
        if path.begun <= problem.further(share)
    )
    most, told = problem.further(problem.objective.max_moved), problem.objective.max_moved
    why = f"nothing moves with --max-moved {told:g}"
    if most > 0:
        if len(layers[0].pairs):
            placement = problem.placement(_traffic(problem, current, layers, table, most))
        else:
            placement = _balanced(problem, current, layers, path, most)
        if 0 < arrivals(current, placement).sum() <= most:
            return Solution(placement, first=first)
        # Also if empty slots of the current plan, which had to be filled, are more.
        why = f"nothing pays with --max-moved {told:g}"
    return Solution(current, notes=(why,), first=first)


def _balanced(
    problem: Problem, current: Placement, layers: list[Layer], path: Descent, most: int
) -> Placement:
    """The best for balance alone, from what runs or from as many replicas as loads ask for."""
    price, objective = terms.price(problem), problem.objective
    best = problem.placement(path.until(most, price))
    if objective.keep_groups or objective.survive_node:  # a replica may not go just anywhere
        return best
    load = problem.profile.load
    heaviest, needed = ((load / r).max(axis=1) for r in (best.replicas, replicas_wanted(problem)))
    if not ((heaviest >= TWICE * needed) & (needed > 0)).any():
        return best
    table = replicated(problem, path.start)
    path = descent(layers, terms.rules(problem, layers), current, table, price)
    if path.begun > most:
        return best
    found = best, problem.placement(path.until(most, price))
    return min(found, key=lambda one: _step_s(problem, one) + price * arrivals(current, one).sum())


def _traffic(
    problem: Problem, current: Placement, layers: list[Layer], table: IntArray, most: int
) -> IntArray:
    """[layers, slots] the best for traffic, too: annealed, and then with the best moves on top."""
    rules, begun = terms.rules(problem, layers), _annealed(problem, current, layers, table, most)
    if terms.is_coherent(problem):
        layers = terms.with_neighbours(problem, layers, begun)
    price = terms.price(problem)
    return descent(layers, rules, current, begun, price).until(most, price)


def _annealed(
    problem: Problem, current: Placement, layers: list[Layer], table: IntArray, limit: int
) -> IntArray:
    """[layers, slots] as traffic wants it: moves are made as dear as the limit takes."""
    most, dearest = limit / table.size, terms.price(problem) * (current.copies == 0)
    every = range(len(layers))

    def search(price: float, chosen: range) -> tuple[IntArray, float]:
        """With moves so much dearer, and the share of the chosen layers' slots that move then."""
        dear = [
            layer._replace(standing=layer.standing + price * away)
            for layer, away in zip(layers, dearest, strict=True)
        ]
        found = _search(problem, dear, table, chosen=chosen)
        moved = arrivals(current, problem.placement(found))[chosen]
        return found, float(moved.sum()) / (len(chosen) * problem.slots)

    price = 1.0
    if most < 1:
        step = 1 if terms.is_coherent(problem) else max(len(layers) // SAMPLE, 1)
        price = _fitting(lambda price: search(price, every[::step])[1], most)
    found, moved = search(price, every)
    return found if moved <= most else _in_some_layers(problem, current, layers, (table, found))


def _in_some_layers(
    problem: Problem, current: Placement, layers: list[Layer], tables: tuple[IntArray, IntArray]
) -> IntArray:
    """The second table where its moves win most, as far as the limit goes, and else the first."""
    rules, found = terms.rules(problem, layers), tables[0].copy()
    moves = [arrivals(current, problem.placement(table)).sum(axis=1) for table in tables]
    won = [
        np.subtract(*(seconds_of(layer, settle(layer, rules, row, True)) for row in rows))
        for layer, *rows in zip(layers, *tables, strict=True)
    ]
    more, left = moves[1] - moves[0], problem.further(problem.objective.max_moved) - moves[0].sum()
    for at in np.argsort(-np.array(won) / np.maximum(more, 1)):
        if won[at] > 0 and more[at] <= left:
            found[at], left = tables[1][at], left - more[at]
    return found


def _fitting(moved_at: Callable[[float], float], most: float) -> float:
    """A price, from 1, at which so much moves, or a little less."""
    price, best, fits = 1.0, 0.0, 0.0
    too_low, too_high = 0.0, 0.0
    for _ in range(TRIES):
        moved = moved_at(price)
        if best < moved <= most:
            fits, best = price, moved
        if best > NEAR * most or (moved <= most and price == 1.0):
            break
        if moved > most:
            too_low = price
            price *= _dearer(moved / most)
        else:
            too_high = price
        if too_high:
            price = (too_low * too_high) ** 0.5
    return fits or price


def _dearer(excess: float) -> float:
    """Of load alone, twice the price moves about a tenth less."""
    return min(max(excess**7, 1.5), STEEPEST)


def _search(
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
    return _fastest(replace(problem, trace=None), tables)  # of which a search knows nothing


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
