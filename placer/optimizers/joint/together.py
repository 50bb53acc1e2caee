"""Requests' homes and the placement, each given the other."""

from dataclasses import replace

import numpy as np

from placer.cost import score
from placer.cost.homes import shared
from placer.cost.owned import Kinds, scheduled
from placer.labels import assign
from placer.placement import Placement
from placer.plan import Solution
from placer.problem import Problem

STARTS, PASSES = 4, 8
TIE = 1e-9  # share of a step below which two are as fast: rounding


class Met:
    """The fastest solution met, by the score: on the recording, or as expected from the profile.
    At first ``plain`` with requests at home with the least loaded."""

    def __init__(self, problem: Problem, plain: Solution) -> None:
        self._problem, self.solution = problem, plain
        self._step_s = score(problem, plain.placement, problem.trace, True).step_s
        self.meet(plain)

    def meet(self, found: Solution) -> None:
        """``found``, with the homes that a scheduler gives requests there."""
        problem, placement = self._problem, found.placement
        homes = scheduled(problem.profile, placement, problem.trace)
        step_s = score(problem, placement, problem.trace, True, homes).step_s
        if step_s < self._step_s * (1 - TIE):
            self._step_s = step_s
            self.solution = replace(found, scheduled=True)


def relabelled(problem: Problem, kinds: Kinds, placement: Placement) -> Placement:
    """``placement`` with each layer's GPUs named so that most visits stay at home, which changes
    neither balance nor fan-out.

    Homes by the experts of one layer, then names by the homes and homes by the names in turns;
    from a few layers, the best of all. GPUs of a node stay together.
    """
    visits = kinds.visits(placement.held_in(placement.gpus)) * kinds.share[:, None, None]
    layers, best = np.arange(placement.layers), -1.0
    table = placement.physical_to_logical.reshape(placement.layers, placement.gpus, -1)
    named = table
    for first in np.unique(np.linspace(0, placement.layers - 1, STARTS).astype(int)):
        homes, before = shared(visits[:, first], kinds.share), -1.0
        for _ in range(PASSES):
            contents = assign(np.einsum("clg,ch->lhg", visits, homes), placement.nodes)
            gain = visits[:, layers[:, None], contents].sum(axis=1)
            homes = shared(gain, kinds.share)
            stay = float((gain * homes).sum())
            if stay > best:
                best, named = stay, table[layers[:, None], contents]
            if stay <= before * (1 + TIE):
                break
            before = stay
    return problem.placement(named.reshape(placement.layers, -1))
