from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.cost import compute, memory, moves, score, step_seconds
from placer.objective import DISPATCHES, Dispatch, Objective
from placer.problem import Problem
from placer.topology import Gpu, Link
from tests.builders import a_model, a_placement, a_problem, a_topology, a_trace, loads, worlds

PROFILE = loads([[3, 1, 1, 1]])


def test_arithmetic_binds_when_a_step_has_many_tokens() -> None:
    problem = a_problem(PROFILE, objective=Objective(efficiency=0.5))
    gpu = Gpu(1e3, 1e3, 10**9, 1e30)
    problem = replace(problem, topology=replace(problem.topology, gpu=gpu))
    served = np.array([[40.0, 20.0]])
    load = np.array([[30.0, 10.0, 10.0, 10.0]])
    # One token in one expert: 6 * 8 * 4 = 192 operations, at 500 a second.
    assert compute.seconds(problem, problem.linear, served, load) == pytest.approx([40 * 192 / 500])


def test_reading_weights_binds_when_a_step_has_few_tokens() -> None:
    problem = a_problem(PROFILE)
    gpu = Gpu(1e30, 1e30, 10**9, 1e3)
    problem = replace(problem, topology=replace(problem.topology, gpu=gpu))
    load = np.array([[1e9, 1e9, 1e9, 0.0]])
    # GPU 0 reads experts 0 and 1, GPU 1 only 2: two times 3 * 8 * 4 weights of 2 bytes.
    found = compute.seconds(problem, problem.linear, np.zeros((1, 2)), load)
    assert found == pytest.approx([2 * 192 / 1e3])


def test_a_gpu_holds_its_experts_and_what_every_gpu_holds() -> None:
    model = a_model(layers=1, other_bytes=1000)
    placement = a_placement([[0, 1, 2, 0, 3, -1]])
    assert memory.gpu_bytes(model, placement).tolist() == [1000 + 3 * 192, 1000 + 2 * 192]


def test_slots_that_fit_are_whole_slots_on_every_gpu() -> None:
    topology = a_topology(2)
    small = replace(topology, gpu=replace(topology.gpu, hbm_bytes=1000))
    # 900 bytes usable, two layers of 192 bytes an expert: 2 slots a GPU.
    assert memory.slots_that_fit(a_model(layers=2), small, Objective()) == 4


def test_an_expert_that_was_on_the_gpu_already_does_not_move() -> None:
    before, after = a_placement([[0, 1, 2, 3]]), a_placement([[1, 2, 3, 0]])
    assert moves.arrivals(before, after).tolist() == [[False, True, False, True]]


def test_empty_slots_do_not_move() -> None:
    before = a_placement([[0, 1, 2, 3, -1, -1]])
    after = a_placement([[0, 1, -1, 2, 3, -1]])
    assert moves.arrivals(before, after).tolist() == [[False, False, False, True, False, False]]


def test_a_move_is_counted_priced_and_shared_out() -> None:
    problem = a_problem(loads([[1, 1, 1, 1]]), gpus=4, nodes=2)
    before = a_placement([[0, 1, 2, 3]], gpus=4, nodes=2)
    after = a_placement([[1, 0, 3, 2]], gpus=4, nodes=2)  # all inside their nodes
    across = a_placement([[2, 1, 0, 3]], gpus=4, nodes=2)
    inside, over = moves.cost(problem, before, after), moves.cost(problem, before, across)
    assert (inside.moved, inside.moved_share, inside.moved_bytes) == (4, 1.0, 4 * 192)
    assert (inside.network_bytes, over.network_bytes) == (0, 2 * 192)
    assert inside.seconds == pytest.approx(192 / (450e9 / 2))  # half the links serve
    assert over.seconds == pytest.approx(192 / (50e9 / 2))


def test_a_step_is_the_sum_of_its_parts() -> None:
    trace = a_trace([[[0, 1], [2, 3]], [[0, 2], [1, 3]]])
    for dispatch in DISPATCHES:
        problem = a_problem(trace, objective=Objective(dispatch))
        for found in (score(problem, problem.linear), score(problem, problem.linear, trace)):
            parts = found.dispatch_s + found.experts_s + found.combine_s
            assert found.step_s == pytest.approx(parts)
            assert found.step_s > 0


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_half_the_bits_there_halve_the_dispatch_alone(dispatch: Dispatch) -> None:
    wide = a_problem(a_trace([[[0, 2], [0, 2]]] * 2), objective=Objective(dispatch))
    free = Link(wide.topology.local.bytes_per_s, latency_s=0.0)
    wide = replace(wide, topology=replace(wide.topology, local=free))
    narrow = replace(wide, model=replace(wide.model, dispatch_bits=8, combine_bits=16))
    before, after = score(wide, wide.linear), score(narrow, narrow.linear)
    assert before.dispatch_s > 0
    assert after.dispatch_s == pytest.approx(before.dispatch_s / 2)
    assert after.combine_s == before.combine_s > 0


def test_expected_and_measured_scores_say_which_they_are() -> None:
    trace = a_trace([[[0]]])
    problem = a_problem(trace)
    assert score(problem, problem.linear).basis == "expected"
    assert score(problem, problem.linear, trace).basis == "measured"


@given(worlds(), st.sampled_from(DISPATCHES))
def test_what_no_time_depends_on_may_be_left_out(problem: Problem, dispatch: Dispatch) -> None:
    problem = replace(problem, objective=Objective(dispatch))
    whole, timed = (score(problem, problem.linear, only_timed=only) for only in (False, True))
    if dispatch == "allgather":
        whole = replace(whole, fanout_gpus=None, fanout_nodes=None)
    assert timed == replace(whole, hops=None)


@given(worlds(), st.sampled_from(DISPATCHES))
def test_steps_of_several_sizes_take_what_the_score_says_of_each(
    problem: Problem, dispatch: Dispatch
) -> None:
    sizes = 1, 64, 5000
    each = [replace(problem, objective=Objective(dispatch, tokens_per_gpu=one)) for one in sizes]
    told = step_seconds(each[0], problem.linear, sizes)
    assert told == [score(one, one.linear).step_s for one in each]
