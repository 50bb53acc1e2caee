"""The same programme means the same to every solver."""

from itertools import product
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.arrays import FloatArray, IntArray
from placer.objective import SOLVERS, Effort, Solver
from placer.solver import Programme, partitions

every_solver = pytest.mark.parametrize("solver", SOLVERS)


def exactly(solver: Solver, seconds: float = 20.0) -> Effort:
    return Effort(solver, gap=0.0, time_limit_s=seconds)


def knapsack(worth: list[float], weight: list[float], room: float) -> Programme:
    """Take what is worth most and fits."""
    programme = Programme()
    taken = programme.binary((len(worth),), cost=[-value for value in worth])
    programme.hold(taken, weight, high=room)
    return programme


def split_evenly(load: FloatArray, parts: int) -> tuple[Programme, IntArray]:
    """The lightest heaviest part: a continuous variable above whole sums."""
    programme = Programme()
    member = programme.binary((len(load), parts))
    top = programme.continuous((1,), 0.0, float(load.sum()), cost=1.0)
    for row in member:
        programme.hold(row, 1.0, 1, 1)
    for column in member.T:
        programme.hold(np.append(column, top), np.append(load, -1.0), high=0.0)
    return programme, member


@every_solver
def test_the_best_two_of_three_are_found(solver: Solver) -> None:
    answer = knapsack([6, 5, 4], [5, 4, 3], room=7).solve(exactly(solver))
    assert answer.values is not None
    assert answer.values.tolist() == [0, 1, 1]
    assert (answer.status, answer.objective, answer.bound) == ("optimal", -9, -9)


@every_solver
@pytest.mark.parametrize("scale", [1.0, 1 / 3, 0.1])
def test_fractions_are_no_hindrance(solver: Solver, scale: float) -> None:
    load = np.array([7.0, 5.0, 4.0, 3.0, 2.0]) * scale
    programme, _ = split_evenly(load, parts=2)
    assert programme.solve(exactly(solver)).objective == pytest.approx(11 * scale)


@every_solver
def test_what_cannot_be_is_infeasible(solver: Solver) -> None:
    programme = Programme()
    programme.hold(programme.binary((2,), cost=1.0), 1.0, low=3)
    answer = programme.solve(exactly(solver))
    assert (answer.status, answer.values, answer.objective) == ("infeasible", None, None)


@every_solver
def test_a_row_holds_on_both_sides(solver: Solver) -> None:
    for cost, taken in ((1.0, 2), (-1.0, 3)):
        programme = Programme()
        programme.hold(programme.binary((4,), cost=cost), 1.0, low=2, high=3)
        assert programme.solve(exactly(solver)).objective == cost * taken


@every_solver
def test_a_gap_is_kept_and_told(solver: Solver) -> None:
    load = np.random.default_rng(0).integers(1, 1000, 12).astype(float)
    programme, _ = split_evenly(load, parts=3)
    exact = programme.solve(exactly(solver))
    rough = programme.solve(Effort(solver, gap=0.2))
    assert exact.objective is not None
    assert rough.objective is not None
    assert rough.bound is not None
    assert rough.status in ("optimal", "within gap")
    assert rough.bound <= exact.objective + 1e-6
    assert exact.objective - 1e-6 <= rough.objective <= rough.bound / (1 - 0.2) + 1e-6


@every_solver
def test_running_out_of_time_is_an_answer_too(solver: Solver) -> None:
    load = np.random.default_rng(0).integers(10**5, 10**6, 60).astype(float)
    programme, member = split_evenly(load, parts=7)
    start = np.eye(7)[np.arange(60) % 7]
    values = np.append(start.ravel(), (load @ start).max())
    answer = programme.solve(exactly(solver, seconds=0.3), values)
    assert answer.status == "out of time"
    if answer.values is not None:
        assert answer.objective is not None
        assert (answer.values[member].sum(axis=1) == 1).all()
        assert answer.objective >= load.sum() / 7


@every_solver
def test_a_start_changes_nothing_but_the_way(solver: Solver) -> None:
    load = np.array([7.0, 5.0, 4.0, 3.0, 2.0])
    programme, member = split_evenly(load, parts=2)
    start = np.eye(2)[[0, 0, 0, 1, 1]]
    answer = programme.solve(exactly(solver), np.append(start.ravel(), 16.0))
    assert answer.values is not None
    assert (load @ answer.values[member]).max() == answer.objective == 11


@every_solver
def test_solvers_say_nothing_and_repeat_themselves(
    solver: Solver, capfd: pytest.CaptureFixture[str]
) -> None:
    load = np.random.default_rng(1).integers(1, 1000, 9).astype(float)
    programme, _ = split_evenly(load, parts=3)
    one, other = (programme.solve(exactly(solver)) for _ in range(2))
    assert one.values is not None
    assert other.values is not None
    assert one.values.tolist() == other.values.tolist()
    assert capfd.readouterr() == ("", "")


@settings(max_examples=15, deadline=None)
@given(
    worth=st.lists(st.integers(1, 50), min_size=2, max_size=6),
    seed=st.integers(0, 2**16),
)
def test_all_solvers_find_what_trying_everything_finds(worth: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 20, len(worth)).astype(float)
    room = float(weight.sum() // 2)
    best = min(
        -float(np.dot(taken, worth))
        for taken in product((0, 1), repeat=len(worth))
        if np.dot(taken, weight) <= room
    )
    programme = knapsack([float(value) for value in worth], weight.tolist(), room)
    for solver in SOLVERS:
        assert programme.solve(exactly(solver)).objective == pytest.approx(best)


def test_partitions_are_all_there_once_in_order() -> None:
    found = partitions(3, 2, (1, 2), limit=10)
    assert found is not None
    assert found.tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("items", "parts", "sizes", "count"),
    [
        (8, 4, (2, 2), 105),
        (8, 2, (4, 4), 35),
        (4, 4, (1, 1), 1),
        (3, 4, (0, 1), 1),
        (5, 1, (5, 5), 1),
    ],
)
def test_partitions_are_as_many_as_combinatorics_says(
    items: int, parts: int, sizes: tuple[int, int], count: int
) -> None:
    found = partitions(items, parts, sizes, limit=1000)
    assert found is not None
    assert len(found) == count
    assert partitions(items, parts, sizes, limit=count - 1) is None


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2), st.integers(1, 4))
def test_partitions_are_what_trying_every_label_gives(
    items: int, parts: int, low: int, high: int
) -> None:
    expected = set()
    for labels in product(range(parts), repeat=items):
        if all(low <= labels.count(part) <= high for part in range(parts)):
            first = list(dict.fromkeys(labels))
            expected.add(tuple(first.index(label) for label in labels))
    found = partitions(items, parts, (low, high), limit=10_000)
    assert found is not None
    assert [tuple(row) for row in found.tolist()] == sorted(expected)


def test_limits_may_be_infinite() -> None:
    programme = Programme()
    programme.hold(programme.binary((1,), cost=-1.0), 1.0, low=-inf, high=inf)
    assert programme.solve(exactly("highs")).objective == -1
