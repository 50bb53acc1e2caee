"""How often joint searches: where layers depend on each other, and where few experts may move."""

from dataclasses import replace

import numpy as np
import pytest

from placer.cost import score
from placer.cost.moves import arrivals
from placer.objective import Effort, Objective
from placer.optimizers import optimizer
from placer.optimizers.joint.annealing import LEAST
from placer.placement import Placement
from placer.problem import Problem
from tests.builders import a_placement, a_problem, a_trace


def joint(problem: Problem) -> Placement:
    return optimizer("joint")(problem).placement


def chains(seed: int, layers: int = 4, experts: int = 8) -> list[list[list[int]]]:
    """Tokens that go from an expert to one of its two followers in the next layer."""
    rng = np.random.default_rng(seed)
    followers = rng.integers(experts, size=(layers, experts, 2))
    tokens, at = [], rng.integers(experts, size=200)
    for expert in at:
        path = []
        for layer in range(layers):
            path.append([int(expert)])
            expert = followers[layer, expert, rng.integers(2)]
        tokens.append(path)
    return tokens


@pytest.mark.parametrize("seed", range(5))
def test_where_layers_depend_on_each_other_the_budget_goes_into_more_starts(seed: int) -> None:
    task = a_problem(a_trace(chains(seed), 8), gpus=4, nodes=2, objective=Objective("coherent"))
    once = replace(task, effort=Effort(iterations=LEAST * 4))
    blind = replace(task, trace=None)
    assert score(blind, joint(task)).step_s <= score(blind, joint(once)).step_s
    assert joint(task).digest == joint(task).digest


@pytest.mark.parametrize("odd", [False, True])
def test_the_limit_of_moves_holds_for_all_layers(odd: bool) -> None:
    # Tokens use 0 with 2 and 1 with 3, which stand apart: in each of 18 layers, or in every other,
    # one exchange, two moves of four slots, brings them together.
    def uses(layer: int, kind: int) -> list[int]:
        return [kind, kind + 2] if layer % 2 or not odd else [2 * kind, 2 * kind + 1]

    tokens = [[uses(layer, kind) for layer in range(18)] for kind in (0, 1)] * 50
    task = a_problem(
        a_trace(tokens),
        objective=Objective("dedup", max_moved=0.2, horizon_s=1e6),
        current=a_placement([[0, 1, 2, 3]] * 18),
    )
    assert task.current is not None
    found = joint(task)
    assert arrivals(task.current, found).sum() == 14  # of 72 slots, a fifth is 14.4
    assert score(task, found).step_s < score(task, task.current).step_s
