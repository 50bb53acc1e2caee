"""A running map that breaks a rule: the fewest moves that mend it, against every map there is, and
what plans make of it."""

from itertools import combinations, combinations_with_replacement, product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.arrays import IntArray
from placer.checks import violations
from placer.cost.moves import arrivals
from placer.objective import Objective
from placer.placement import EMPTY, Placement
from placer.problem import Problem
from placer.repair import faults, repair
from tests.builders import a_model, a_placement, a_problem, loads

LOAD = [40, 30, 20, 10]


def running(
    rows: list[list[int]],
    gpus: int = 2,
    nodes: int = 1,
    load: list[int] = LOAD,
    groups: int = 2,
    **rules: bool | float,
) -> Problem:
    """Where that map runs."""
    current = a_placement(rows, len(load), gpus, nodes)
    model = a_model(len(rows), len(load), groups=groups)
    objective = Objective(**rules)  # type: ignore[arg-type]
    profile = loads([load] * len(rows))
    slots = len(rows[0])
    return a_problem(profile, slots, gpus, nodes, objective, model=model, current=current)


def fewest(problem: Problem) -> int:
    """Moves to the nearest of all maps of one layer that keep the rules and use as many slots of
    each GPU or more."""
    start, gpus = problem.start, problem.topology.gpus
    size, experts = start.slots_per_gpu, range(problem.model.experts)
    choose = combinations_with_replacement if problem.objective.allow_duplicates else combinations
    ways = []
    for held in start.physical_to_logical.reshape(gpus, size).tolist():
        counts = range(size - held.count(EMPTY), size + 1)
        chosen = [
            [*some, *[EMPTY] * (size - count)]
            for count in counts
            for some in choose(experts, count)
        ]
        ways.append([(sum(e not in (*held, EMPTY) for e in some), some) for some in chosen])
    best = problem.slots + 1
    for way in product(*ways):
        moved = sum(moves for moves, _ in way)
        if moved < best:
            after = problem.placement(np.array([[e for _, some in way for e in some]]))
            if not violations(after, problem.objective, problem.model):
                best = moved
    return best


def moved(problem: Problem, after: Placement) -> int:
    return int(arrivals(problem.start, after).sum())


def in_use(placement: Placement) -> IntArray:
    """[layers, gpus] slots"""
    table = placement.physical_to_logical
    used: IntArray = (table != EMPTY).reshape(len(table), placement.gpus, -1).sum(axis=2)
    return used


# experts, slots, GPUs, nodes and groups, and the rules that can be kept there
SHAPES = [
    (4, 6, 2, 2, 4, ["", "allow_duplicates"]),
    (4, 6, 3, 1, 2, ["", "allow_duplicates", "keep_groups"]),
    (4, 8, 4, 2, 4, ["", "survive_node", "keep_groups"]),
    (4, 9, 3, 3, 4, ["", "survive_node"]),
    (6, 8, 4, 2, 6, ["keep_groups"]),
    (6, 8, 4, 2, 2, ["keep_groups"]),
]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_map_that_keeps_the_rules_is_nearer(data: st.DataObject) -> None:
    experts, slots, gpus, nodes, groups, rules = data.draw(st.sampled_from(SHAPES))
    rule = data.draw(st.sampled_from(rules))
    row = data.draw(st.lists(st.integers(EMPTY, experts - 1), min_size=slots, max_size=slots))
    load = data.draw(st.lists(st.integers(1, 100), min_size=experts, max_size=experts))
    problem = running([row], gpus, nodes, load, groups, **({rule: True} if rule else {}))
    mended = repair(problem)
    assert violations(mended, problem.objective, problem.model) == []
    assert moved(problem, mended) == fewest(problem)
    assert (in_use(mended) >= in_use(problem.start)).all()
    broken = violations(problem.start, problem.objective, problem.model)
    assert (mended is problem.start, faults(problem) == []) == (not broken, not broken)


def test_a_map_that_keeps_the_rules_stays() -> None:
    problem = running([[0, 1, 2, 3]])
    assert repair(problem) is problem.start
    assert faults(problem) == []


def test_a_lost_expert_takes_the_place_of_a_replica() -> None:
    # Of expert 0's two replicas, since 1 and 2 have no other.
    problem = running([[0, 1, 0, 2]])
    mended = repair(problem)
    assert moved(problem, mended) == 1
    assert mended.replicas.tolist() == [[1, 1, 1, 1]]
    assert faults(problem) == ["expert 3 of layer 0 was lost"]


def test_a_lost_expert_fills_an_empty_slot_of_the_lighter_gpu() -> None:
    # GPU 0 carries 70 tokens and GPU 1 20.
    problem = running([[0, 1, EMPTY, 2, EMPTY, EMPTY]])
    assert repair(problem).copies[0, :, 1].tolist() == [0, 0, 1, 1]
    assert (moved(problem, repair(problem)), in_use(repair(problem)).tolist()) == (1, [[2, 2]])
    filled = repair(problem, fill=True)
    assert (moved(problem, filled), in_use(filled).tolist()) == (3, [[3, 3]])


def test_a_second_copy_gives_way_to_the_replica_that_evens_the_loads_most() -> None:
    # With 0, GPU 1 has 20 / 2 + 10 + 40 / 2 of 100 tokens; with 1 it has 35.
    problem = running([[0, 1, 2, 2, 3, 3]])
    assert faults(problem) == ["expert 3 of layer 0 was on GPU 1 more than once"]
    mended = repair(problem)
    assert moved(problem, mended) == 1
    assert mended.copies[0, :, 1].tolist() == [1, 0, 1, 1]
    allowed = running([[0, 1, 2, 2, 3, 3]], allow_duplicates=True)
    assert repair(allowed) is allowed.start


def test_only_layers_that_break_a_rule_are_touched() -> None:
    problem = running([[0, 1, 2, 3, 0, 1], [1, 1, 0, 2, 3, 0]])
    assert np.argwhere(arrivals(problem.start, repair(problem)))[:, 0].tolist() == [1]


def test_an_expert_on_one_node_alone_goes_to_another() -> None:
    problem = running([[0, 1, 2, 3, 0, 1, 3, 0]], gpus=2, nodes=2, survive_node=True)
    # The second copy of 0 on GPU 1 is the one that nobody needs.
    assert repair(problem).physical_to_logical.tolist() == [[0, 1, 2, 3, 0, 1, 3, 2]]
    assert faults(problem) == [
        "expert 0 of layer 0 was on GPU 1 more than once",
        "expert 2 of layer 0 was on one node alone",
    ]


def test_torn_groups_come_together_where_most_of_them_is() -> None:
    # Groups 0 1 2 and 3 4 5; experts 2 and 3 are on the wrong node.
    problem = running([[0, 1, 3, 2, 4, 5]], nodes=2, load=[1] * 6, keep_groups=True)
    mended = repair(problem)
    assert moved(problem, mended) == 2
    assert mended.copies[0, :, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert faults(problem) == ["group 0 of layer 0 was spread over nodes (and 1 more)"]
