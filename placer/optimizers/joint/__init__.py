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

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from placer.arrays import IntArray
from placer.cost.owned import Kinds, cluster_homes
from placer.optimizers.joint import terms, together
from placer.optimizers.joint.annealing import HOT, WARM, fastest, search
from placer.optimizers.joint.running import within_limit
from placer.optimizers.joint.search import Layer
from placer.optimizers.joint.start import group, start
from placer.plan import Solution
from placer.problem import Problem

HOME_TURNS = 2  # of the placement given requests' homes, and homes given the placement


def optimize(problem: Problem) -> Solution:
    layers, table = terms.layers(problem), start(problem)
    if problem.current is not None:
        found = within_limit(problem, problem.current, layers, table)
    else:
        tables = [search(problem, layers, table), *_grouped(problem, layers)]
        found = Solution(problem.placement(fastest(problem, tables)))
    if problem.profile.clusters is None or problem.objective.dispatch != "dedup":
        return found
    return _with_homes(problem, layers, found)


def _grouped(problem: Problem, layers: list[Layer]) -> Iterator[IntArray]:
    """[layers, slots] groups of GPUs that hold all experts, alike, if there is room for that; and
    the best found from there, but where tokens stay with replicas: of that the search knows less.
    """
    if (part := group(problem)) is None:
        return
    one = search(part, terms.layers(part), start(part))
    yield (table := np.tile(one, problem.slots // part.slots))
    if not terms.is_coherent(problem):
        yield search(problem, layers, table, hot=WARM)


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
            best.meet(within_limit(problem, problem.current, theirs, start(problem)))
            break
        table = first.physical_to_logical.astype(np.int64)
        found = search(problem, theirs, table, hot=WARM if turn else HOT)
        first = problem.placement(found)
        best.meet(replace(plain, placement=first))
    return best.solution
