"""The only door to PuLP (HiGHS, CBC) and to OR-Tools' CP-SAT.

A ``Programme`` is linear: minimise a cost over whole and continuous variables within bounds, with
sums of them held between limits. It is built once and solved by any of ``SOLVERS``, on one thread
and with a fixed seed, so that an ``Answer`` repeats unless the time ran out.

CP-SAT counts in whole numbers. Coefficients and limits are multiplied by the smallest D that makes
them whole, and continuous variables take multiples of 1 / D: exact for the maxima and deviations of
whole sums that optimizers ask for. Where no D up to ``FINEST`` does, they are rounded to multiples
of 1 / ``FINEST``.

``partitions`` is for what is so small that every answer can be looked at: sooner than a solver,
and without its tolerances.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import inf, isfinite, lcm
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pulp

from placer.arrays import FloatArray, IntArray
from placer.objective import Effort, Solver

Status = Literal["optimal", "within gap", "out of time", "infeasible"]

FINEST = 10**6
LARGEST = 2**50  # that leaves CP-SAT's 63 bits room for sums
SEED = 1
EXACT = 1e-6  # share by which arithmetic may miss an optimum


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a solver found.

    status:    ``optimal``: proven; ``within gap``: as near as the effort asked for;
               ``out of time``: stopped, with values or without; ``infeasible``: there are none
    values:    [variables] the best found; those that must be whole are
    objective: their cost
    bound:     no values cost less, as far as the solver says
    """

    status: Status
    values: FloatArray | None = None
    objective: float | None = None
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """``low <= sum of coefficient * variable <= high``; either limit may be infinite."""

    terms: Mapping[int, float]
    low: float
    high: float


class Programme:
    """A linear programme to minimise; its variables are known by their index."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.bounds: list[tuple[float, float]] = []
        self.whole: list[bool] = []
        self.rows: list[Row] = []

    def binary(self, shape: tuple[int, ...], cost: npt.ArrayLike = 0.0) -> IntArray:
        """[shape] indices of new variables that are 0 or 1; ``cost`` is one or [shape]."""
        return self._add(shape, (0.0, 1.0), cost, whole=True)

    def continuous(
        self, shape: tuple[int, ...], low: float, high: float, cost: npt.ArrayLike = 0.0
    ) -> IntArray:
        """[shape] indices of new variables between ``low`` and ``high``, both finite."""
        return self._add(shape, (float(low), float(high)), cost, whole=False)

    def hold(
        self,
        variables: npt.ArrayLike,
        coefficients: npt.ArrayLike = 1.0,
        low: float = -inf,
        high: float = inf,
    ) -> None:
        """Keep the sum of coefficients times (different) variables within limits."""
        index = np.asarray(variables).ravel()
        weight = np.broadcast_to(np.asarray(coefficients, dtype=np.float64).ravel(), index.shape)
        terms = {v: c for v, c in zip(index.tolist(), weight.tolist(), strict=True) if c}
        self.rows.append(Row(terms, float(low), float(high)))

    def solve(self, effort: Effort, start: FloatArray | None = None) -> Answer:
        """The best values that ``effort`` finds; ``start`` [variables] are values that will do."""
        return _SOLVERS[effort.solver](self, effort, start)

    def _add(
        self, shape: tuple[int, ...], bounds: tuple[float, float], cost: npt.ArrayLike, whole: bool
    ) -> IntArray:
        first, count = len(self.costs), int(np.prod(shape))
        self.costs += np.broadcast_to(np.asarray(cost, dtype=np.float64), shape).ravel().tolist()
        self.bounds += [bounds] * count
        self.whole += [whole] * count
        return np.arange(first, first + count).reshape(shape)


def partitions(items: int, parts: int, sizes: tuple[int, int], limit: int) -> IntArray | None:
    """[ways, items] the part of each item, in every way to split them; None for over ``limit``.

    sizes: fewest and most items of a part. Parts are alike: they are numbered by their first item.
    """
    low, high = sizes
    label = np.arange(parts)
    ways = np.zeros((1, 0), dtype=np.int64)
    for left in range(items - 1, -1, -1):
        count = (ways[:, :, None] == label).sum(axis=1)
        opened = (count > 0).sum(axis=1, keepdims=True)
        wanting = np.maximum(low - count, 0).sum(axis=1, keepdims=True)
        fits = (count < high) & (label <= opened) & (wanting - (count < low) <= left)
        way, part = np.nonzero(fits)
        if len(way) > limit:
            return None
        ways = np.column_stack([ways[way], part])
    return ways


def _answer(
    programme: Programme, values: Iterable[float], bound: float | None, finished: bool
) -> Answer:
    found = np.fromiter(values, dtype=np.float64)
    found[programme.whole] = np.rint(found[programme.whole])
    objective = float(found @ np.array(programme.costs))
    if bound is not None and objective - bound <= EXACT * max(1.0, abs(objective)):
        return Answer("optimal", found, objective, objective)
    return Answer("within gap" if finished else "out of time", found, objective, bound)


def _highs(programme: Programme, effort: Effort, start: FloatArray | None) -> Answer:
    problem, variables = _in_pulp(programme)
    solver = pulp.HiGHS(
        msg=False, threads=1, gapRel=effort.gap, timeLimit=effort.time_limit_s, random_seed=SEED
    )
    # Step by step: PuLP's own call takes no start and returns no bound.
    solver.createAndConfigureSolver(problem)
    solver.buildSolverModel(problem)
    highs = problem.solverModel
    column = np.array([variable.index for variable in variables], dtype=np.int32)
    if start is not None:
        highs.setSolution(len(start), column, start)
    highs.run()
    status, info = highs.getModelStatus().name, highs.getInfo()
    if status in ("kInfeasible", "kUnboundedOrInfeasible"):
        return Answer("infeasible")
    if not isfinite(info.objective_function_value):
        return Answer("out of time")
    values = np.array(highs.getSolution().col_value)[column]
    bound = info.mip_dual_bound if any(programme.whole) else info.objective_function_value
    return _answer(programme, values, bound if isfinite(bound) else None, status == "kOptimal")


def _cbc(programme: Programme, effort: Effort, start: FloatArray | None) -> Answer:
    problem, variables = _in_pulp(programme)
    if start is not None:
        for variable, value in zip(variables, start.tolist(), strict=True):
            variable.setInitialValue(value)
    problem.solve(
        pulp.COIN_CMD(
            path=pulp.PULP_CBC_CMD.pulp_cbc_path,
            msg=False,
            gapRel=effort.gap,
            timeLimit=effort.time_limit_s,
            warmStart=start is not None,
            options=[f"randomSeed {SEED}", f"randomCbcSeed {SEED}"],
        )
    )
    if problem.status == pulp.LpStatusInfeasible:
        # So CBC calls it, too, if its time runs out in preprocessing; a start knows better.
        return Answer("infeasible" if start is None else "out of time")
    if problem.status != pulp.LpStatusOptimal:
        return Answer("out of time")
    values = [variable.value() for variable in variables]
    finished = problem.sol_status == pulp.LpSolutionOptimal
    # CBC keeps its bound to itself, but when it finishes the bound is within the gap.
    objective = float(np.dot(values, programme.costs))
    bound = objective - effort.gap * abs(objective) if finished else None
    return _answer(programme, values, bound, finished)


def _in_pulp(programme: Programme) -> tuple[Any, list[Any]]:
    problem = pulp.LpProblem("placer", pulp.LpMinimize)
    kinds = [pulp.LpInteger if whole else pulp.LpContinuous for whole in programme.whole]
    variables = [
        problem.add_variable(f"v{index}", low, high, cat=kind)
        for index, ((low, high), kind) in enumerate(zip(programme.bounds, kinds, strict=True))
    ]
    # Zero costs stay in: PuLP forgets variables that nothing mentions.
    costs = dict(zip(variables, programme.costs, strict=True))
    problem.setObjective(pulp.LpAffineExpression(costs))
    for row in programme.rows:
        left = pulp.LpAffineExpression({variables[v]: c for v, c in row.terms.items()})
        senses = [(pulp.LpConstraintGE, row.low), (pulp.LpConstraintLE, row.high)]
        if row.low == row.high:
            senses = [(pulp.LpConstraintEQ, row.low)]
        for sense, limit in senses:
            if isfinite(limit):
                problem.addConstraint(pulp.LpConstraint(left, sense, rhs=limit))
    return problem, variables


def _cp_sat(programme: Programme, effort: Effort, start: FloatArray | None) -> Answer:
    from ortools.sat.python import cp_model  # takes half a second: only where it is asked for

    whole, sums = programme.whole, [dict(enumerate(programme.costs))]
    sums += [dict(row.terms) for row in programme.rows]
    unit = _denominator(
        chain(
            (c for terms in sums for v, c in terms.items() if whole[v]),
            (limit for row in programme.rows for limit in (row.low, row.high)),
            chain.from_iterable(programme.bounds),
        )
    )
    times = [1 if each else unit for each in whole]  # a variable's value, as CP-SAT counts it
    model = cp_model.CpModel()
    variables = [
        model.new_int_var(round(low * by), round(high * by), "")
        for (low, high), by in zip(programme.bounds, times, strict=True)
    ]

    def scaled(terms: Mapping[int, float]) -> tuple[Any, int]:
        """The sum in whole numbers, and what it was multiplied by."""
        by = unit * _denominator(c for v, c in terms.items() if not whole[v])
        numbers = [round(c * (by // times[v])) for v, c in terms.items()]
        return cp_model.LinearExpr.weighted_sum([variables[v] for v in terms], numbers), by

    for row in programme.rows:
        left, by = scaled(row.terms)
        if isfinite(row.low):
            model.add(left >= round(row.low * by))
        if isfinite(row.high):
            model.add(left <= round(row.high * by))
    cost, by = scaled(sums[0])
    model.minimize(cost)
    if start is not None:
        for variable, value, size in zip(variables, start.tolist(), times, strict=True):
            model.add_hint(variable, round(value * size))

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.relative_gap_limit = effort.gap
    solver.parameters.max_time_in_seconds = effort.time_limit_s
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Answer("infeasible")
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Answer("out of time")
    values = [solver.value(v) / size for v, size in zip(variables, times, strict=True)]
    return _answer(programme, values, solver.best_objective_bound / by, status == cp_model.OPTIMAL)


def _denominator(numbers: Iterable[float]) -> int:
    """The smallest number up to ``FINEST`` that makes all of ``numbers`` whole, or the best."""
    finite = {abs(number) for number in numbers if isfinite(number)}
    finest = max(1, min(FINEST, int(LARGEST / max(finite, default=1.0)))) if any(finite) else 1
    result = 1
    for number in sorted(finite):
        near = Fraction(number).limit_denominator(finest)
        result = lcm(result, near.denominator)
        if result > finest or abs(near - Fraction(number)) > 1e-12 * max(1.0, number):
            return finest
    return result


_Solve = Callable[[Programme, Effort, FloatArray | None], Answer]
_SOLVERS: dict[Solver, _Solve] = {"highs": _highs, "cbc": _cbc, "cp-sat": _cp_sat}
