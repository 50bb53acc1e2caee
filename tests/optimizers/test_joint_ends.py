"""A search always ends, also where GPUs differ by no more than rounding."""

import numpy as np

from placer import topology
from placer.model import ModelShape
from placer.objective import Objective
from placer.optimizers.joint import terms
from placer.optimizers.joint.search import PASSES, descend
from placer.placement import Placement
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import Profile

# A layer of a simulated fleet, and the map that joint had made for it an hour before. Two exchanges
# that undo each other each seemed to win a part in 10^8: the spread of nearly equal seconds is a
# difference of squares.
LOAD = [
    3124, 6476, 7499, 12780, 6528, 109698, 62394, 37754, 23904, 13214, 11226, 15904, 28185,
    49584, 18087, 11242, 3783, 5524, 45611, 8868, 6283, 134022, 10336, 6842, 99522, 26519,
    12970, 33160, 4055, 4689, 13264, 3880, 45970, 6299, 15484, 3972, 5202, 55840, 52499, 10020,
    13525, 5101, 13318, 42090, 21447, 12603, 10461, 42092, 30544, 4449, 47202, 12526, 4701,
    54484, 17877, 7090, 12087, 37447, 5873, 16763, 63229, 13956, 3259, 14577, 8173, 55765,
    55230, 18054, 28510, 23089, 13918, 3324, 63461, 14588, 15496, 23922, 45814, 25336, 4548,
    5479, 7158, 17810, 24823, 3752, 8920, 5219, 8106, 4522, 5241, 28259, 3204, 60573, 2795,
    96599, 8526, 23293, 19348, 11346, 6775, 10242, 53359, 51311, 19988, 69002, 10741, 26528,
    15341, 17098, 42245, 61651, 19656, 50770, 30572, 7101, 17060, 38876, 18613, 27482, 7139,
    15064, 16416, 5034, 39192, 5739, 39984, 22273, 39739, 16928,
]  # fmt: skip
TABLE = [
    83, 121, 2, 3, 8, 5, 84, 100, 9, 17, 28, 37, 20, 31, 22, 23, 98, 33, 34, 40, 36, 41, 45, 39,
    56, 49, 69, 51, 52, 116, 63, 55, 64, 65, 81, 97, 93, 78, 70, 79, 21, 105, 88, 90, 92, 85,
    94, 87, 96, 43, 104, 99, 13, 101, 108, 110, 60, 19, 114, 4, 16, 125, 118, 126, 18, 112, 29,
    117, 120, 119, 122, 124, 86, 91, 53, 58, 102, 0, 109, 111, 46, 10, 74, 103, 77, 80, 95, 82,
    75, 6, 7, 11, 68, 71, 14, 15, 35, 38, 42, 62, 44, 47, 48, 27, 50, 123, 54, 57, 59, 1, 61,
    66, 73, 72, 89, 67, 107, 12, 113, 127, 115, 76, 24, 25, 26, 106, 30, 32,
]  # fmt: skip
TOKENS = 385_758


def problem() -> Problem:
    running = Placement(np.array([TABLE]), 128, 16, 2)
    return Problem(
        model=ModelShape("m", layers=1, experts=128, top_k=8, hidden=2048, moe_intermediate=768),
        topology=topology.preset("h100").resized(16),
        profile=Profile(np.array([LOAD], float), 8, TOKENS, sequences=0, sampled=True),
        slots=128,
        objective=Objective("allgather", tokens_per_gpu=128, max_moved=0.0),
        current=running,
    )


def test_exchanges_that_win_no_more_than_rounding_are_none() -> None:
    task = problem()
    assert task.current is not None
    (layer,) = terms.layers(task)
    rules, away = terms.rules(task, [layer]), (task.current.copies[0] == 0).astype(float)
    found, worth = descend(layer, rules, np.array(TABLE), away, np.zeros(1))
    assert len(found) < PASSES * len(TABLE)
    mean_s = layer.arithmetic.sum() / 16
    assert (worth > 1e-7 * mean_s).all()


def test_a_plan_that_may_move_nothing_is_found_at_once() -> None:
    found = solve(problem(), "joint")
    assert isinstance(found, Solution)
    assert found.placement.physical_to_logical.tolist() == [TABLE]
