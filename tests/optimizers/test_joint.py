from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.checks import violations
from placer.cost import score
from placer.cost.moves import arrivals
from placer.cost.sharing import shares
from placer.cost.visits import visit_chance as expected_visit_chance
from placer.files.routing import read_trace
from placer.model import ModelShape
from placer.objective import DISPATCHES, STEP_TOKENS_PER_GPU, Dispatch, Effort, Objective
from placer.optimizers import optimizer
from placer.optimizers.joint import terms
from placer.optimizers.joint.relabel import follow
from placer.optimizers.joint.search import (
    PAIRS,
    accept,
    by_move,
    recorded_s,
    refresh,
    seconds_of,
    settle,
    visit_chance,
    weigh,
)
from placer.optimizers.joint.start import replicated, start
from placer.placement import Placement
from placer.problem import Problem
from placer.topology import Link
from placer.trace import concatenate
from tests.builders import (
    a_model,
    a_placement,
    a_problem,
    a_topology,
    a_trace,
    loads,
    random_trace,
    worlds,
)

EXAMPLE = sorted((Path(__file__).parents[2] / "examples/tiny_moe/traces").glob("*.npz"))
DEDUP = Objective("dedup")
QUICK = settings(max_examples=40)


def large(problem: Problem) -> Problem:
    """With experts large enough for arithmetic to count."""
    return replace(problem, model=replace(problem.model, hidden=2048, moe_intermediate=1024))


def joint(problem: Problem) -> Placement:
    return optimizer("joint")(problem).placement


def test_experts_that_are_used_together_share_a_gpu() -> None:
    # Tokens use 0 with 1 or 2 with 3; eplb parts them, since loads are equal.
    trace = a_trace([[[0, 1]], [[2, 3]]] * 50)
    found = joint(large(a_problem(trace, objective=Objective("dedup"))))
    held = found.physical_to_logical.reshape(2, 2)
    assert sorted(sorted(gpu.tolist()) for gpu in held) == [[0, 1], [2, 3]]


def test_company_is_not_worth_any_imbalance() -> None:
    # As before, but the second kind is rare: together, 0 and 1 would be most of the load.
    trace = a_trace([[[0, 1]]] * 90 + [[[2, 3]]] * 10)
    found = joint(large(a_problem(trace, objective=Objective("dedup"))))
    assert score(large(a_problem(trace)), found).balancedness == 1.0


def test_under_allgather_only_balance_counts() -> None:
    found = joint(large(a_problem(loads([[5000, 4000, 2000, 1000]]))))
    held = found.physical_to_logical.reshape(2, 2)
    assert sorted(sorted(gpu.tolist()) for gpu in held) == [[0, 3], [1, 2]]


def test_redundant_slots_go_to_hot_experts() -> None:
    found = joint(large(a_problem(loads([[8000, 2000, 1000, 1000]]), slots=6)))
    assert found.replicas[0, 0] == 2


def test_coherent_tokens_find_their_next_expert_where_they_are() -> None:
    trace = a_trace([[[0], [3]], [[1], [2]], [[2], [1]], [[3], [0]]] * 50)
    problem = large(a_problem(trace, objective=Objective("coherent")))
    assert score(problem, joint(problem), trace).hops == 0


@pytest.mark.parametrize("dispatch", ["dedup", "coherent"])
def test_nodes_with_room_for_all_experts_send_nothing_to_each_other(dispatch: Dispatch) -> None:
    # The network's latency is most of so small a model's step, and no single exchange saves it.
    model = ModelShape("tiny_moe", 6, 16, 2, 128, 64)
    trace = concatenate([read_trace(path, model) for path in EXAMPLE])
    objective = Objective(dispatch, tokens_per_gpu=STEP_TOKENS_PER_GPU["decode"])
    problem = a_problem(trace, gpus=16, nodes=2, slots=32, objective=objective)
    problem = replace(problem, model=model)
    assert score(problem, joint(problem)).fanout_nodes == 1.0


def test_a_latency_is_waited_for_as_soon_as_one_token_goes_that_way() -> None:
    # Both nodes hold both experts; then the second node's 1 is exchanged for another 0.
    trace = a_trace([[[0]], [[1]]] * 20)
    topology = replace(a_topology(4, nodes=2), network=Link(10**18, 3.0))
    problem = replace(a_problem(trace, slots=4), topology=topology, objective=DEDUP)
    rules, layer = terms.rules(problem), terms.layers(problem)[0]
    rows = [np.array(row, dtype=np.int64) for row in ([0, 1, 0, 1], [0, 1, 0, 0])]
    near, far = (recorded_s(layer, rules, settle(layer, rules, row, True)) for row in rows)
    assert far - near == pytest.approx(2 * 3.0, rel=1e-3)


@QUICK
@given(worlds(), st.sampled_from(DISPATCHES))
def test_it_is_valid_deterministic_and_never_worse_than_its_start(
    problem: Problem, dispatch: str
) -> None:
    problem = replace(problem, objective=Objective(dispatch))  # type: ignore[arg-type]
    problem = replace(problem, effort=Effort(iterations=3000))
    found = joint(problem)
    assert violations(found, problem.objective, problem.model, problem.topology) == []
    assert joint(problem).digest == found.digest
    if dispatch != "coherent":  # whose layers depend on each other
        rules = terms.rules(problem)
        for at, layer in enumerate(terms.layers(problem)):
            rows = start(problem)[at], found.physical_to_logical[at].astype(np.int64)
            before, after = (settle(layer, rules, row) for row in rows)
            assert seconds_of(layer, after) <= seconds_of(layer, before) + 1e-15


@QUICK
@given(worlds(), st.integers(0, 10**6), st.sampled_from(DISPATCHES))
def test_what_an_exchange_costs_is_the_difference_that_it_makes(
    problem: Problem, seed: int, dispatch: str
) -> None:
    """The incremental sums against counting everything again."""
    problem = large(replace(problem, objective=Objective(dispatch)))  # type: ignore[arg-type]
    rules, layer = terms.rules(problem), terms.layers(problem)[0]
    state = settle(layer, rules, start(problem)[0].copy())
    rng = np.random.default_rng(seed)
    size = problem.slots // problem.topology.gpus
    for _ in range(20):
        x, y = (int(slot) for slot in rng.integers(problem.slots, size=2))
        f = int(state.slots[y])
        if rng.random() < 0.5 and state.replicas[0, state.slots[x]] > 1:
            y, f = -1, int(rng.integers(problem.model.experts))
        elif x // size == y // size or state.held[y // size, state.slots[x]]:
            continue
        if state.held[x // size, f]:
            continue
        before = settle(layer, rules, state.slots.copy())
        cost = weigh(layer, rules, state, (x, y, f))
        accept(layer, rules, state, (x, y, f))
        after = settle(layer, rules, state.slots.copy())
        if rules.by_rule:  # what replicas lose where others leave them is left out until then
            refresh(layer, rules, state)
        else:
            difference = seconds_of(layer, after) - seconds_of(layer, before)
            assert cost == pytest.approx(difference, abs=1e-10)
        by_rule = ("ahead", "shares", "pull") if rules.by_rule else ()
        for name in ("replicas", "held", "colocated", "danger", "sums", *by_rule):
            assert getattr(state, name) == pytest.approx(getattr(after, name), abs=1e-10), name
        assert state.step == pytest.approx(after.step, abs=1e-10)
    assert state.sums[PAIRS].min() >= -1e-9


@given(
    mean=st.floats(0, 1), again=st.floats(0, 1), top_k=st.integers(1, 8)
)  # again: the share of pairs among what the mean allows
def test_the_kernel_knows_the_same_chance_of_a_visit(mean: float, again: float, top_k: int) -> None:
    mean *= top_k
    pairs = again * mean * (top_k - 1) / 2
    arrays = (np.array([[mean]]), np.array([[pairs]]))
    expected = expected_visit_chance(*arrays, top_k)[0, 0]
    assert visit_chance(mean, pairs, top_k) == pytest.approx(expected, abs=1e-9)


def test_a_running_plan_is_only_touched_up() -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, (2, 32)) * 10_000
    first = large(a_problem(loads(load.tolist()), slots=40, gpus=8))
    running = joint(first)
    drifted = load * rng.lognormal(0, 0.2, load.shape)
    again = large(a_problem(loads(drifted.tolist()), slots=40, gpus=8, current=running))
    found = joint(again)
    assert 0 < arrivals(running, found).mean() <= 0.1
    before, after = (score(again, placement).balancedness for placement in (running, found))
    assert after > before
    frozen = replace(again, objective=Objective(max_moved=0.0))
    assert joint(frozen).digest == running.digest


def test_a_running_plan_gets_the_replicas_that_its_load_asks_for() -> None:
    """Of 14 tokens 8 want expert 0, and the redundant slot is with one that nobody wants."""
    running = a_placement([[0, 1, 2, 3, 4, 1]], experts=5)
    task = large(a_problem(loads([[8, 0, 1, 2, 3]]), slots=6, current=running))
    assert np.bincount(replicated(task, start(task))[0]).tolist() == [2, 1, 1, 1, 1]
    free = replace(task, objective=replace(task.objective, max_moved=1.0))
    assert score(task, running).balancedness == pytest.approx(7 / 9)
    assert score(task, joint(free)).balancedness == 1.0


@QUICK
@given(seed=st.integers(0, 10_000))
def test_replicas_go_where_the_expert_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 1.5, (2, 12)) * rng.integers(0, 2, (2, 1)) * 1000 + 1
    running = joint(
        a_problem(loads((rng.lognormal(0, 1, (2, 12)) * 1000).tolist()), slots=16, gpus=4)
    )
    task = a_problem(loads(load.tolist()), slots=16, gpus=4, current=running)
    found = task.placement(replicated(task, start(task)))
    assert not violations(found, task.objective, task.model, task.topology)


@pytest.mark.parametrize("gpus", [4, 6])
def test_every_expert_survives_any_one_node(gpus: int) -> None:
    load = np.random.default_rng(1).lognormal(0, 1, (2, 12)).tolist()
    objective = Objective("dedup", survive_node=True)
    problem = large(a_problem(loads(load), slots=36, gpus=gpus, nodes=2, objective=objective))
    found = joint(problem)
    assert violations(found, objective, problem.model, problem.topology) == []
    by_node = found.copies.reshape(2, 12, 2, -1).sum(axis=3)
    assert (by_node > 0).all()


def test_groups_stay_on_their_node_where_they_must() -> None:
    model = a_model(layers=1, experts=8, groups=4)
    objective = Objective("allgather", keep_groups=True)
    profile = loads([[9000, 8000, 7000, 1000, 5000, 2000, 100, 50]])
    problem = a_problem(profile, slots=12, gpus=4, nodes=2, objective=objective, model=model)
    found = joint(large(problem))
    assert violations(found, objective, problem.model, problem.topology) == []


def test_following_leaves_balance_and_fanout_as_they_are() -> None:
    trace = random_trace(0, tokens=200, layers=4, experts=8)
    problem = a_problem(trace, gpus=4, objective=Objective("coherent"))
    table = np.array([np.random.default_rng(s).permutation(8) for s in range(4)])
    before = Placement(table, 8, 4)
    after = Placement(follow(problem, table), 8, 4)
    one, other = score(problem, before), score(problem, after)
    assert one.balancedness == pytest.approx(other.balancedness)
    assert one.fanout_gpus == pytest.approx(other.fanout_gpus)
    assert one.hops is not None
    assert other.hops is not None
    assert other.hops < one.hops


def test_where_tokens_come_from_pulls_on_the_layer_after() -> None:
    # Every token goes from expert 0 to expert 3; expert 0 is on GPU 0.
    trace = a_trace([[[0], [3]]] * 10)
    problem = a_problem(trace, objective=Objective("coherent"))
    layers = terms.layers(problem)
    table = a_placement([[0, 1, 2, 3], [0, 1, 2, 3]]).physical_to_logical
    first, second = terms.with_neighbours(problem, layers, table)
    assert second.standing[3, 0] < 0 == second.standing[3, 1]
    assert first.leaving[0, 1] > 0 == first.leaving[0, 0]


def test_the_kernel_shares_replicas_as_the_score_does() -> None:
    trace = random_trace(3, tokens=500, layers=1, experts=8, top_k=3)
    for nodes in (1, 2):
        problem = large(a_problem(trace, slots=16, gpus=4, nodes=nodes, objective=DEDUP))
        row = np.array([*range(8), 7, 3, 1, 0, 6, 2, 4, 5])
        state = settle(terms.layers(problem)[0], terms.rules(problem), row)
        share = shares(problem.profile, problem.placement(row[None]), "dedup")[0]
        assert state.shares == pytest.approx(share)


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_kernel_knows_where_coherent_tokens_are(nodes: int) -> None:
    trace, objective = (
        random_trace(3, tokens=500, layers=2, experts=8, top_k=3),
        Objective("coherent"),
    )
    problem = large(a_problem(trace, slots=16, gpus=4, nodes=nodes, objective=objective))
    table = np.array([[*range(8), 7, 3, 1, 0, 6, 2, 4, 5], [*range(8), 5, 5, 4, 6, 7, 2, 1, 0]])
    _, layer = terms.with_neighbours(problem, terms.layers(problem), table)
    state = settle(layer, terms.rules(problem), table[1])
    share = shares(problem.profile, problem.placement(table), "coherent")[1]
    assert state.shares == pytest.approx(share)


def test_even_the_smallest_worlds_are_searched() -> None:
    # 8/2 + 4/2 + 3 on each of two GPUs.
    found = joint(large(a_problem(loads([[8e5, 3e5, 4e5, 3e5]]), slots=6)))
    assert score(large(a_problem(loads([[8e5, 3e5, 4e5, 3e5]]), slots=6)), found).balancedness == 1


@pytest.mark.parametrize(("experts", "slots", "gpus"), [(4, 6, 2), (6, 8, 2), (4, 8, 4), (5, 6, 3)])
def test_in_tiny_worlds_the_search_finds_the_best(experts: int, slots: int, gpus: int) -> None:
    for seed in range(10):
        load = np.random.default_rng(seed).integers(1, 10, experts) * 1e5
        problem = large(a_problem(loads([load.tolist()]), slots=slots, gpus=gpus))
        best = optimizer("exhaustive")(problem).bound_s
        assert score(problem, joint(problem)).step_s == pytest.approx(best, rel=1e-9)


def test_exchanges_are_worth_what_they_win_a_move_together() -> None:
    # The second prepares the third: (1 + 8) s for two moves; the last takes none, and joins them.
    moves = np.array([1, 1, 1, 1, 0])
    found = by_move(moves, np.array([6.0, 1.0, 8.0, 2.0, 0.5]))
    assert found.tolist() == [6.0, 4.5, 4.5, 2.5, 2.5]


def test_the_gpu_that_owns_most_tokens_is_known_of_a_trace_with_requests_for_all() -> None:
    """Two requests of 3 and 1 tokens on two GPUs: one owns 3 of 4, 1.5 times the mean."""
    tokens = [[[0, 1]], [[1, 2]], [[2, 3]], [[0, 3]]]
    both = a_trace(tokens, seq_lens=[3, 1])
    for trace, owned in ((both, 1.5), (a_trace(tokens), 1.0)):
        assert terms.rules(a_problem(trace, objective=DEDUP)).owned == owned


def test_what_a_gpu_owns_goes_into_other_nodes_by_its_place() -> None:
    """GPUs own 4, 3 | 2, 1 tokens, node by node: 4 of a mean of 2.5, and the first place 6 of 5."""
    trace = a_trace([[[0, 1]]] * 10, seq_lens=[4, 3, 2, 1])
    found = terms.rules(a_problem(trace, gpus=4, nodes=2, objective=DEDUP))
    assert (found.owned, found.owned_node) == (1.2, 1.6)


def test_of_links_and_network_the_slower_is_felt() -> None:
    trace = random_trace(0, tokens=200, layers=2, experts=8)
    problem = a_problem(trace, gpus=4, nodes=2, objective=Objective("coherent"))
    layer, row = terms.layers(problem)[0], np.arange(8)
    rules = terms.rules(problem, [layer])
    slow = rules._replace(visit_s=1.0, node_visit_s=1e-3, latency_s=0.0, node_latency_s=0.0)
    assert terms.felt(layer, slow, row) == pytest.approx([1 / 2, 0.0], abs=1e-8)
    slow = rules._replace(visit_s=1e-3, node_visit_s=1.0, latency_s=0.0, node_latency_s=0.0)
    assert terms.felt(layer, slow, row) == pytest.approx([0.0, 1.0], abs=1e-8)


@pytest.mark.parametrize("dispatch", ["allgather", "dedup"])
@pytest.mark.parametrize("seed", range(6))
def test_no_layer_gets_slower_on_what_was_recorded(dispatch: Dispatch, seed: int) -> None:
    trace = random_trace(seed, tokens=60, experts=8)
    problem = large(a_problem(trace, objective=Objective(dispatch), slots=10))
    rules, found = terms.rules(problem), joint(problem).physical_to_logical
    for layer, before, after in zip(terms.layers(problem), start(problem), found, strict=True):
        was, now = (
            recorded_s(layer, rules, settle(layer, rules, np.array(row, dtype=np.int64), True))
            for row in (before, after)
        )
        assert now <= was * (1 + 1e-9)
