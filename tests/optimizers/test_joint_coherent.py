"""What joint's search pays for the places where tokens are, under ``coherent``."""

import numpy as np
import pytest

from placer.objective import Objective
from placer.optimizers.joint import terms
from tests.builders import a_placement, a_problem, a_trace

COHERENT = Objective("coherent")


def test_experts_of_a_token_on_one_gpu_are_one_visit() -> None:
    # Experts 2 and 3 of every token: each is half of the visit, or a whole one.
    layer = terms.layers(a_problem(a_trace([[[2, 3]]] * 10), objective=COHERENT))[0]
    together, apart = (a_placement([row]).held_in(2)[0] for row in ([2, 3, 0, 1], [2, 0, 3, 1]))
    half = 1 / 2  # of a token is each transition
    for held, visits in ((together, [1.0, 0.0]), (apart, [1.0, 1.0])):
        each = half * held * terms.visits_each(layer, held, 2)
        assert each[2:].sum(axis=0) == pytest.approx(visits, abs=1e-6)


def test_where_tokens_are_everywhere_alike_no_expert_stands_better_anywhere() -> None:
    # All tokens use 0 and then 1. With 0 on both GPUs half are on each: that 1 is there for them
    # says the number of its replicas, and is not paid for again.
    problem = a_problem(a_trace([[[0], [1]]] * 10), slots=6, objective=COHERENT)
    table = a_placement([[0, 1, 2, 0, 1, 3]] * 2).physical_to_logical
    _, second = terms.with_neighbours(problem, terms.layers(problem), table)
    assert second.standing == pytest.approx(np.zeros((4, 2)), abs=1e-12 * second.arithmetic.max())
