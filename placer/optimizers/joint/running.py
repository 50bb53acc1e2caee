"""From a plan that runs: the best within the share of slots that may move."""

from collections.abc import Callable

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.cost.moves import arrivals
from placer.optimizers.joint import terms
from placer.optimizers.joint.annealing import search, step_s
from placer.optimizers.joint.descent import Descent, descent
from placer.optimizers.joint.search import Layer, seconds_of, settle
from placer.optimizers.joint.start import replicas_wanted, replicated
from placer.placement import Placement
from placer.plan import Solution
from placer.problem import Problem

TRIES, NEAR = 8, 0.7  # prices of moves that are tried, until so much of ``max_moved`` is used,
SAMPLE = 8  # on so many layers, or a few more, and then on all
STEEPEST = 16.0  # factor of the price from one try to the next
TWICE = 2  # the load that a slot would need to have: exchanges alone did not come far then
FIRST = (0.01, 0.02, 0.05, 0.1, 0.2)  # shares of the slots, of which it is told what they win


def within_limit(
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
    return min(found, key=lambda one: step_s(problem, one) + price * arrivals(current, one).sum())


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

    def tried(price: float, chosen: range) -> tuple[IntArray, float]:
        """With moves so much dearer, and the share of the chosen layers' slots that move then."""
        dear = [
            layer._replace(standing=layer.standing + price * away)
            for layer, away in zip(layers, dearest, strict=True)
        ]
        found = search(problem, dear, table, chosen=chosen)
        moved = arrivals(current, problem.placement(found))[chosen]
        return found, float(moved.sum()) / (len(chosen) * problem.slots)

    price = 1.0
    if most < 1:
        step = 1 if terms.is_coherent(problem) else max(len(layers) // SAMPLE, 1)
        price = _fitting(lambda price: tried(price, every[::step])[1], most)
    found, moved = tried(price, every)
    return found if moved <= most else _in_some_layers(problem, current, layers, (table, found))


def _in_some_layers(
    problem: Problem, current: Placement, layers: list[Layer], tables: tuple[IntArray, IntArray]
) -> IntArray:
    """The second table where its moves win most, as far as the limit goes, and else the first."""
    rules, found = terms.rules(problem, layers), tables[0].copy()
    moves = [arrivals(current, problem.placement(table)).sum(axis=1) for table in tables]
    won: FloatArray = np.empty(len(layers))
    for at, layer in enumerate(layers):
        begun, then = (settle(layer, rules, table[at], True) for table in tables)
        won[at] = seconds_of(layer, begun) - seconds_of(layer, then)
    more, left = moves[1] - moves[0], problem.further(problem.objective.max_moved) - moves[0].sum()
    for at in np.argsort(-won / np.maximum(more, 1)):
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
