from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.arrays import FloatArray
from placer.cost.serving import LayerMap, serve
from placer.cost.sharing import away
from placer.cost.traffic import expected, measured
from placer.objective import DISPATCHES, Dispatch
from placer.placement import Placement
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace
from tests.builders import a_placement, a_trace, loads, random_trace, worlds

# GPU 0 holds experts 0 and 1, GPU 1 holds 2 and 3.
PLACEMENT = a_placement([[0, 1, 2, 3], [0, 1, 2, 3]])
PLACEMENT3 = a_placement([[0, 1, 2, 3]] * 3)


def mean(values: FloatArray | None) -> float:
    assert values is not None
    return float(values.mean())


def test_fanout_is_the_distinct_gpus_of_a_token() -> None:
    trace = a_trace([[[0, 1], [0, 2]], [[2, 3], [1, 3]]])
    found = measured(trace, PLACEMENT, "dedup")
    assert found.fanout_gpus is not None
    assert found.fanout_gpus.tolist() == [1, 2]
    assert mean(found.fanout_nodes) == 1


def test_nodes_are_counted_once() -> None:
    four = a_placement([[0, 1, 2, 3]], gpus=4, nodes=2)
    found = measured(a_trace([[[0, 1, 2]]]), four, "dedup")
    assert (mean(found.fanout_gpus), mean(found.fanout_nodes)) == (3, 2)


def test_hops_of_one_expert_a_token_are_its_changes_of_gpu() -> None:
    trace = a_trace([[[0], [1]], [[0], [2]], [[3], [0]]])  # stays, leaves, leaves
    assert measured(trace, PLACEMENT, "dedup").hops == pytest.approx(2 / 3)
    assert expected(of_trace(trace), PLACEMENT, "dedup").hops == pytest.approx(2 / 3)


def test_hops_of_more_are_those_of_all_pairs_alike() -> None:
    # From {0, 1} to {0, 2} two of four pairs leave GPU 0, to {2, 3} all, to {0, 1} none.
    trace = a_trace([[[0, 1], [0, 2]], [[0, 1], [2, 3]], [[0, 1], [0, 1]]])
    assert measured(trace, PLACEMENT, "dedup").hops == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert expected(of_trace(trace), PLACEMENT, "dedup").hops == pytest.approx(1 / 2)


def test_gates_weigh_measured_hops() -> None:
    # On GPU 0 with 0.9, then on GPU 1 with 0.8: it stays with 0.9 * 0.2 + 0.1 * 0.8.
    gates = np.array([[[0.9, 0.1], [0.4, 1.6]]])
    trace = a_trace([[[0, 2], [1, 3]]], gates=gates)
    assert measured(trace, PLACEMENT, "dedup").hops == pytest.approx(0.74)
    assert expected(of_trace(trace), PLACEMENT, "dedup").hops == pytest.approx(0.5)
    none = a_trace([[[0, 2], [1, 3]]], gates=np.zeros((1, 2, 2)))
    assert measured(none, PLACEMENT, "dedup").hops == pytest.approx(0.5)


def test_one_layer_has_no_hops() -> None:
    one = a_placement([[0, 1, 2, 3]])
    assert measured(a_trace([[[0]]]), one, "dedup").hops is None


def test_sequences_go_to_the_gpu_with_the_fewest_tokens() -> None:
    # The long one to GPU 0, both short ones to GPU 1; all need expert 0 on GPU 0.
    trace = a_trace([[[0]]] * 4, seq_lens=[2, 1, 1])
    found = measured(trace, a_placement([[0, 1, 2, 3]]), "dedup")
    assert found.dispatch.gpu[0].tolist() == [[2, 0], [2, 0]]


def test_a_coherent_token_stays_where_one_of_its_experts_ran_each_as_likely() -> None:
    # Three of four experts on GPU 0; then one on each GPU.
    tokens = 4000
    trace = a_trace([[[0, 1, 2, 4], [0, 1, 4, 5]]] * tokens, experts=6)
    placement = a_placement([[0, 1, 2, 3, 4, 5]] * 2, experts=6)
    found = measured(trace, placement, "coherent")
    stayed = np.diagonal(found.combine.gpu, axis1=1, axis2=2)
    for layer, share in enumerate((0.75, 0.5)):
        off = 3 * (tokens * share * (1 - share)) ** 0.5
        assert stayed[layer] == pytest.approx([tokens * share, tokens * (1 - share)], abs=off)
    # All visit both GPUs, and go from where they stayed.
    assert (found.combine.gpu == stayed[:, :, None]).all()
    assert (found.dispatch.gpu[1] == stayed[0][:, None]).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_coherent_tokens_change_is_their_hops(seed: int) -> None:
    """Top-1 of the same tokens: one of their experts is drawn in every layer."""
    trace = random_trace(seed, tokens=5000, layers=3, top_k=2)
    column = np.random.default_rng(seed).integers(2, size=(trace.tokens, 3, 1))
    one = Trace(np.take_along_axis(trace.expert_ids, column, axis=2), trace.seq_lens, 4)
    hops, drawn = (measured(each, PLACEMENT3, "coherent").hops for each in (trace, one))
    assert drawn == pytest.approx(hops, abs=3 * (2 * 0.25 / trace.tokens) ** 0.5)


@given(worlds())
def test_a_replica_or_not_every_activation_is_served_once(problem: Problem) -> None:
    trace = random_trace(
        1,
        layers=problem.model.layers,
        experts=problem.model.experts,
        top_k=problem.model.top_k,
    )
    for dispatch in ("allgather", "dedup", "coherent"):
        found = measured(trace, problem.linear, dispatch)
        assert found.served.sum(axis=1).tolist() == [trace.tokens * trace.top_k] * trace.layers


@given(st.integers(0, 500))
def test_expected_equals_measured_for_top2_without_replicas(seed: int) -> None:
    """With two experts a token, loads and pairs say everything about fan-out."""
    trace = random_trace(seed, experts=6, top_k=2)
    placement = a_placement([[0, 3, 1, 5, 2, 4]] * 2, experts=6, gpus=3)
    truth = measured(trace, placement, "dedup")
    guess = expected(of_trace(trace), placement, "dedup")
    assert guess.fanout_gpus == pytest.approx(truth.fanout_gpus)
    assert guess.served == pytest.approx(truth.served)
    assert guess.hops == pytest.approx(truth.hops)


@given(st.integers(0, 500))
def test_expected_equals_measured_for_coherent_top1(seed: int) -> None:
    trace = random_trace(seed, layers=3, top_k=1)
    rows = [[0, 1, 2, 3], [3, 0, 1, 2], [1, 2, 0, 3]]
    placement = a_placement(rows, gpus=4, nodes=2)
    truth = measured(trace, placement, "coherent")
    guess = expected(of_trace(trace), placement, "coherent")
    assert guess.dispatch.gpu[1:] == pytest.approx(truth.dispatch.gpu[1:])
    assert guess.dispatch.node[1:] == pytest.approx(truth.dispatch.node[1:])
    assert guess.combine.gpu == pytest.approx(truth.combine.gpu)
    assert guess.combine.node == pytest.approx(truth.combine.node)


@pytest.mark.parametrize("seed", range(3))
def test_expected_combine_is_that_of_coherent_top2_tokens(seed: int) -> None:
    trace = random_trace(seed, tokens=4000, layers=2, experts=8)
    placement = a_placement([[0, 3, 1, 5, 2, 4, 6, 7]] * 2, experts=8, gpus=4, nodes=2)
    truth = measured(trace, placement, "coherent").combine
    guess = expected(of_trace(trace), placement, "coherent").combine
    # Whether a token stays on a GPU that it visits is drawn: half a token off at most, each.
    assert np.abs(guess.gpu - truth.gpu).max() < 3 * (trace.tokens / 4) ** 0.5
    assert np.abs(guess.node - truth.node).max() < 3 * (trace.tokens / 4) ** 0.5


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("known", [True, False])
def test_coherent_flows_are_of_all_tokens_that_visit(top_k: int, known: bool) -> None:
    profile = of_trace(random_trace(0, tokens=400, layers=3, experts=6, top_k=top_k))
    if not known:
        profile = replace(profile, coactivation=None)
    once = a_placement([[0, 1, 2, 3, 4, 5, -1, -1]] * 3, 6, gpus=4, nodes=2)
    twice = a_placement([[0, 1, 2, 3, 4, 5, 0, 2, 1, 5, 3, 4]] * 3, 6, gpus=4, nodes=2)
    visits = expected(profile, once, "dedup").dispatch
    for placement in (once, twice):
        there, back = (
            (flow.gpu.sum(axis=1), flow.node.sum(axis=1))
            for flow in (
                expected(profile, placement, "coherent").dispatch,
                expected(profile, placement, "coherent").combine,
            )
        )
        assert [pytest.approx(one) for one in there] == [*back]
        if placement is once:  # where replicas are, tokens that are near one visit fewer
            assert [pytest.approx(one) for one in there] == [
                visits.gpu.sum(axis=1),
                visits.node.sum(axis=1),
            ]


def test_expected_fanout_of_top6_is_close_to_measured() -> None:
    trace = random_trace(3, tokens=4000, layers=2, experts=16, top_k=6)
    order = np.random.default_rng(0).permutation(16)
    placement = Placement(np.array([order, order]), 16, 4)
    truth, guess = (
        measured(trace, placement, "dedup").fanout_gpus,
        expected(of_trace(trace), placement, "dedup").fanout_gpus,
    )
    assert mean(guess) == pytest.approx(mean(truth), rel=0.01)


def test_a_following_replica_saves_the_hop() -> None:
    # Expert 2 is on both GPUs at layer 1, so a token from expert 0 need not leave.
    trace = a_trace([[[0], [2]]])
    placement = a_placement([[0, 1, 2, 3, -1, -1], [0, 1, 2, 3, 2, -1]])
    assert measured(trace, placement, "coherent").hops == 0
    assert expected(of_trace(trace), placement, "coherent").hops == 0


def test_loads_alone_leave_fanout_and_hops_unknown() -> None:
    found = expected(loads([[4, 3, 2, 1]] * 2), PLACEMENT, "dedup")
    assert (found.fanout_gpus, found.hops) == (None, None)


@pytest.mark.parametrize("places", [2, 3, 4, 5])
@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_company_is_what_trying_every_token_comes_to(dispatch: Dispatch, places: int) -> None:
    for replicas in range(1, places + 1):
        tried = tokens_in_company(replicas, places, dispatch)
        found = float(away(np.array([replicas]), places, dispatch)[1][0])
        # Of two or more co-located replicas it takes the mean number: a little low.
        near = 1e-12 if dispatch == "allgather" or replicas in (1, places) else tried / 6
        assert tried - near <= found <= tried + 1e-12


def tokens_in_company(replicas: int, places: int, dispatch: Dispatch) -> float:
    """Share of the tokens from elsewhere that visit place 0 and need expert 0 which it serves.

    Expert 0 stands in the first ``replicas`` places, expert i + 1 only in place i. A token needs
    expert 1, so that place 0 sees it, and each other place with a replica sees a quarter.
    """
    row = [expert for at in range(places) for expert in (0 if at < replicas else -1, at + 1)]
    where = LayerMap.of(a_placement([row], places + 1, places), 0)
    homes, hashes = (grid.ravel() for grid in np.mgrid[1:places, :60])  # 60 names 1 to 5 evenly
    here = None if dispatch == "allgather" else homes
    found = 0.0
    for seen in product([False, True], repeat=replicas - 1):
        others = [at + 2 for at, visited in enumerate(seen) if visited]
        ids = np.tile([0, 1, *others], (len(homes), 1))
        gpu = serve(ids, where, hashes, here, np.zeros(places, dtype=int))
        chance = np.prod([0.25 if visited else 0.75 for visited in seen])
        found += float(chance * (gpu[:, 0] == 0).mean())
    return found
