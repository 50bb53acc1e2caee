"""What holds for every optimizer, on any small world."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.cost import score
from placer.errors import PlacementError
from placer.objective import DISPATCHES, Dispatch, Objective
from placer.optimizers import OPTIMIZERS, optimizer
from placer.problem import Problem
from tests.builders import a_problem, a_trace, loads, worlds

FAST = sorted(set(OPTIMIZERS) - {"exhaustive"})


@given(worlds(), st.sampled_from(FAST))
def test_the_same_problem_gives_the_same_placement(problem: Problem, name: str) -> None:
    first, second = (optimizer(name)(problem).placement for _ in range(2))
    assert first.digest == second.digest


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("name", FAST)
def test_none_is_better_than_trying_everything(name: str, dispatch: Dispatch) -> None:
    trace = a_trace([[[0], [1]], [[0], [2]], [[1], [1]], [[3], [0]], [[0], [1]]])
    problem = a_problem(trace, objective=Objective(dispatch))
    best = optimizer("exhaustive")(problem)
    assert best.bound_s == score(problem, best.placement).step_s
    assert score(problem, optimizer(name)(problem).placement).step_s >= best.bound_s


def test_exhaustive_finds_the_only_even_split() -> None:
    # 5 + 1 on one GPU, 4 + 2 on the other.
    problem = a_problem(loads([[5, 4, 2, 1]]))
    rows = optimizer("exhaustive")(problem).placement.physical_to_logical.reshape(2, 2)
    assert {frozenset(row.tolist()) for row in rows} == {frozenset({0, 3}), frozenset({1, 2})}


def test_exhaustive_keeps_followers_together_when_tokens_stay_where_they_are() -> None:
    trace = a_trace([[[0], [3]], [[1], [2]], [[2], [1]], [[3], [0]]] * 50)
    problem = a_problem(trace, objective=Objective("coherent"))
    best = optimizer("exhaustive")(problem).placement
    assert score(problem, best, trace).hops == 0


def test_exhaustive_refuses_what_it_cannot_finish() -> None:
    with pytest.raises(
        PlacementError, match=r"exhaustive would try .* placements of 1 layers x 64"
    ):
        optimizer("exhaustive")(a_problem(loads([[1.0] * 64]), gpus=8))
    many_layers = a_problem(loads([[1.0] * 4] * 10))
    with pytest.raises(PlacementError, match="exhaustive would try"):
        optimizer("exhaustive")(many_layers)


def test_an_unknown_optimizer_gets_the_nearest_name() -> None:
    with pytest.raises(PlacementError, match="unknown optimizer 'eplp': did you mean 'eplb'"):
        optimizer("eplp")


def test_linear_looks_at_nothing() -> None:
    one, other = (a_problem(loads([row])) for row in ([1, 2, 3, 4], [4, 3, 2, 1]))
    digests = {optimizer("linear")(p).placement.digest for p in (one, replace(other, seed=7))}
    assert len(digests) == 1
