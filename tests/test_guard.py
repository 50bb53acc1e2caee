"""Unknown traffic beside what was recorded, and when to plan for it."""

from dataclasses import replace

import numpy as np
import pytest

from placer.guard import advice, guarded
from placer.objective import Objective
from placer.plan import Hold, Infeasible, Plan, Provenance, Solution
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.profile import Profile, of_trace
from placer.spread import Spread
from tests.builders import a_placement, a_problem, a_trace, by_hand, loads, random_trace, requests

# Four tokens, top-2 of four experts, which use the experts 1, 1/2, 1/4 and 1/4 of the time; then
# all of them 2 and 3.
TRACE = a_trace([[[0, 1], [2, 3]], [[0, 1], [2, 3]], [[0, 2], [2, 3]], [[0, 3], [2, 3]]])
RECORDED = of_trace(TRACE)


def test_the_mean_of_unknown_traffic_uses_all_experts_alike() -> None:
    assert guarded(RECORDED, 1).load.tolist() == [[2, 2, 2, 2], [2, 2, 2, 2]]
    assert guarded(RECORDED, 0.5).load.tolist() == [[3, 2, 1.5, 1.5], [1, 1, 3, 3]]


def test_pairs_and_transitions_of_unknown_traffic_are_those_of_chance() -> None:
    mixed = guarded(RECORDED, 0.5)
    assert mixed.coactivation is not None
    # Tokens have 8 ordered pairs, of 12 that there are: 2/3 each; recorded are 2, 1, 1 and 0.
    row = np.array([0, 2 + 2 / 3, 1 + 2 / 3, 1 + 2 / 3]) / 2
    assert mixed.coactivation[0, 0] == pytest.approx(row)
    assert mixed.coactivation[0, 1] == pytest.approx(np.array([2 + 2 / 3, 0, 2 / 3, 2 / 3]) / 2)
    assert mixed.transitions is not None
    # The 4 tokens over 16 pairs: 1/4 each; recorded are 1 from expert 0 to 2, and none to 0.
    assert mixed.transitions[0, 0] == pytest.approx(np.array([1, 1, 5, 5]) / 8)
    for name in ("coactivation", "transitions"):
        before, after = getattr(RECORDED, name), getattr(mixed, name)
        assert after.sum(axis=(1, 2)) == pytest.approx(before.sum(axis=(1, 2)))


def test_unknown_traffic_departs_from_its_mean_as_one_tokens_choices_do() -> None:
    unknown = guarded(RECORDED, 1).unknown
    assert unknown is not None
    assert unknown.covariance is not None
    # Off the mean by 1/2, 0, 1/4 and 1/4: 3/8 in squares. One token's variances add up to
    # 0 + 1/4 + 3/16 + 3/16 = 5/8: 3/5 of them.
    assert unknown.variance[0] == pytest.approx([0, 0.6 / 4, 0.6 * 3 / 16, 0.6 * 3 / 16])
    assert unknown.covariance[0, 1] == pytest.approx([0, 0, -0.6 / 8, -0.6 / 8])
    assert unknown.covariance[0, 2, 3] == pytest.approx(-0.6 / 16)
    # In layer 1 all tokens are alike: nothing is known of how others would differ.
    assert not unknown.variance[1].any()
    assert not unknown.covariance[1].any()


@pytest.mark.parametrize("share", [0.1, 0.5, 1])
def test_the_law_holds_for_any_recording(share: float) -> None:
    trace = random_trace(7, tokens=50, layers=3, experts=6, top_k=3)
    unknown = guarded(of_trace(trace), share).unknown
    assert unknown is not None
    assert unknown.covariance is not None
    for layer, ids in enumerate(np.moveaxis(trace.expert_ids, 1, 0)):
        chosen = (ids[:, :, None] == np.arange(6)).sum(axis=1)  # [tokens, experts]
        token, even = np.cov(chosen.T, bias=True), 3 / 6
        uneven = ((chosen.mean(axis=0) - even) ** 2).sum()
        law = share**2 * uneven / np.trace(token) * token
        found = unknown.covariance[layer] + np.diag(unknown.variance[layer])
        assert found == pytest.approx(law)
        # As uneven as the recorded traffic in the mean, and all experts together are certain.
        assert unknown.variance[layer].sum() == pytest.approx(share**2 * uneven)
        assert found.sum(axis=1) == pytest.approx(np.zeros(6), abs=1e-12)


def test_no_share_of_unknown_traffic_changes_nothing() -> None:
    assert guarded(RECORDED, 0) is RECORDED


def test_loads_alone_have_experts_that_vary_by_themselves() -> None:
    mixed = guarded(loads([[3, 1]]), 0.5)
    assert (mixed.coactivation, mixed.transitions) == (None, None)
    assert mixed.load.tolist() == [[2.5, 1.5]]
    assert mixed.unknown is not None
    # Off the mean by 1/4 each, 1/8 in squares; variances of 3/16 each: a third, and a quarter.
    assert mixed.unknown.variance[0] == pytest.approx([1 / 64, 1 / 64])
    assert mixed.unknown.covariance is None


def test_sampling_noise_is_that_of_requests_that_are_mixed() -> None:
    # Half of 1/4 and 3/4, and half of 1/2.
    found, want = guarded(requests(*[0.25, 0.75] * 10), 0.5), requests(*[0.375, 0.625] * 10)
    assert found.load == pytest.approx(want.load)
    assert found.noise.variance == pytest.approx(want.noise.variance)
    assert found.noise.covariance == pytest.approx(want.noise.covariance)


def test_requests_that_are_all_alike_are_no_noisier_for_being_mixed() -> None:
    rows = [[[int(at >= 48)]] for at in range(64)] * 10
    alike = of_trace(a_trace(rows, seq_lens=[64] * 10))
    mixed = guarded(alike, 0.5)
    assert mixed.load.tolist() == [[320, 160, 80, 80]]
    assert not mixed.noise.variance.any()
    assert mixed.unknown is not None
    assert mixed.unknown.variance[0, 0] > 0


@pytest.mark.parametrize("profile", [loads([[30, 10]]), RECORDED, requests(*[0.25, 0.75] * 10)])
@pytest.mark.parametrize("share", [0.5, 1])
def test_of_the_recorded_noise_the_squared_recorded_share_is_left(
    profile: Profile, share: float
) -> None:
    """Of blocks of sequences, of too few of them, and of loads alone."""
    before, after = profile.noise, guarded(profile, share).noise
    assert after.variance == pytest.approx((1 - share) ** 2 * before.variance)
    if before.covariance is not None:
        assert after.covariance == pytest.approx((1 - share) ** 2 * before.covariance)


def test_a_layer_that_never_ran_stays_idle() -> None:
    load, pairs = RECORDED.load * [[1], [0]], RECORDED.coactivation
    assert pairs is not None
    idle = replace(
        RECORDED, load=load, coactivation=pairs * [[[1]], [[0]]], transitions=np.zeros((1, 4, 4))
    )
    mixed, whole = guarded(idle, 0.5), guarded(RECORDED, 0.5)
    assert mixed.coactivation is not None
    assert whole.coactivation is not None
    assert mixed.transitions is not None
    assert mixed.unknown is not None
    assert np.array_equal(mixed.coactivation[0], whole.coactivation[0])
    for array in (
        mixed.load[1],
        mixed.coactivation[1],
        mixed.transitions,
        mixed.unknown.variance[1],
    ):
        assert not array.any()


def test_a_layer_that_was_sampled_keeps_its_total() -> None:
    half = replace(RECORDED, load=RECORDED.load * [[1], [0.5]], sampled=True)
    assert half.coactivation is not None
    half = replace(half, coactivation=half.coactivation * [[[1]], [[0.5]]])
    mixed = guarded(half, 0.5)
    assert mixed.load[1].tolist() == [0.5, 0.5, 1.5, 1.5]  # of 2 tokens
    assert mixed.coactivation is not None
    # Of 4 ordered pairs 1/3 each by chance; recorded are 2 of the experts 2 and 3.
    assert mixed.coactivation[1, 2] == pytest.approx(np.array([1 / 3, 1 / 3, 0, 2 + 1 / 3]) / 2)


# Advice


def differing(kinds: float) -> Profile:
    """20 requests of so many tokens that drawing them makes no noise, as if of so many kinds.

    Two experts with 3/4 and 1/4 of the load in the mean, in each request more or less by ``by``.
    Uneven are 2 * 1/16 of 5/8, various 2 * by^2 * 20/19 of it (19 degrees of freedom).
    """
    tokens, requests, mean = 1e9, 20, np.array([0.75, 0.25])
    by = ((kinds - 1) / 16 * 19 / 20) ** 0.5
    second = np.outer(mean, mean) + by**2 * np.array([[1, -1], [-1, 1]])
    spread = Spread(
        products=tokens**2 * requests * second[None],
        lengths=tokens**2 * requests * mean[None],
        squares=tokens**2 * requests,
        blocks=requests,
    )
    return Profile(tokens * requests * mean[None], 1, tokens * requests, requests, spread=spread)


@pytest.mark.parametrize(("kinds", "guard"), [(1, "0.50"), (1.5, "0.40"), (1.9, "0.34")])
def test_few_kinds_of_requests_are_told_with_the_chance_of_another(
    kinds: float, guard: str
) -> None:
    said = advice(differing(kinds))
    assert f"as if of {kinds:.1f} kinds" in said
    assert f"--guard {guard} plans for them" in said


def test_many_kinds_of_requests_or_none_known_are_no_reason_for_a_guard() -> None:
    assert advice(differing(2.1)) == ""
    assert advice(requests(*np.linspace(0, 1, 20))) == ""
    assert advice(loads([[3, 1]])) == ""
    assert advice(requests(0.5)) == ""  # one block


def test_a_layer_that_never_ran_says_nothing_of_the_requests() -> None:
    one = differing(1.5)
    assert one.spread is not None
    spread = replace(
        one.spread,
        products=np.concatenate([one.spread.products, np.zeros((1, 2, 2))]),
        lengths=np.concatenate([one.spread.lengths, np.zeros((1, 2))]),
    )
    two = replace(one, load=np.concatenate([one.load, np.zeros((1, 2))]), spread=spread)
    assert two.variety == one.variety
    assert advice(two) == advice(one)


# Plans

# Of each 100 tokens. Experts 0 and 3 are hot together, with 64 + 36 activations, and 1 and 2, with
# 60 + 40: on a GPU each they are perfectly even, as long as both kinds of tokens come as often.
TWO_KINDS = a_trace(100 * [*[[[0, 3]]] * 36, *[[[1, 2]]] * 36, *[[[0, 1]]] * 24, *[[[0, 2]]] * 4])
TOGETHER, APART = [{0, 3}, {1, 2}], [{0, 2}, {1, 3}]


def world(guard: float, current: list[int] | None = None) -> Problem:
    """Where an expert takes a microsecond a token, and nothing else takes time."""
    running = None if current is None else a_placement([current])
    objective = Objective("dedup", guard=guard, max_moved=1)
    problem = a_problem(of_trace(TWO_KINDS), objective=objective, current=running)
    return replace(problem, topology=by_hand())


def answer(problem: Problem, name: str) -> Plan | Hold | Infeasible:
    return make_plan(problem, solve(problem, name), Provenance(name))


def planned(guard: float, name: str = "joint", current: list[int] | None = None) -> Plan:
    plan = answer(world(guard, current), name)
    assert isinstance(plan, Plan)
    return plan


def by_gpu(plan: Plan) -> list[set[int]]:
    """The experts of each GPU, expert 0's first."""
    held = [set(gpu) for gpu in plan.placement.physical_to_logical.reshape(2, 2).tolist()]
    return held if 0 in held[0] else held[::-1]


@pytest.mark.parametrize("name", ["joint", "exhaustive"])
def test_a_guard_parts_what_may_get_hot_together(name: str) -> None:
    assert by_gpu(planned(0, name)) == TOGETHER
    assert by_gpu(planned(0.5, name)) == APART


def test_a_guarded_plan_is_judged_on_the_recorded_traffic_and_on_the_mixed() -> None:
    plan = planned(0.5)
    assert plan.fit is not None
    assert plan.guarded is not None
    # Linear: experts 0 and 1, with 124 of 200 activations. After: 0 and 2, with 104.
    assert plan.fit.before.balancedness == pytest.approx(100 / 124)
    assert plan.fit.after.balancedness == pytest.approx(100 / 104)
    # Half of the traffic is even whatever is moved: 112 and 102.
    assert plan.guarded.before.balancedness == pytest.approx(100 / 112)
    assert plan.guarded.after.balancedness == pytest.approx(100 / 102)
    assert planned(0).guarded is None


def test_seconds_of_mixed_traffic_are_those_of_the_slowest_gpu_to_be_expected() -> None:
    plan, ms = planned(0.5), 2 * 8192 / 1e3  # a step's, if every token used one expert of a GPU
    assert plan.fit is not None
    assert plan.guarded is not None
    assert plan.fit.after.step_s * 1e3 == pytest.approx(1.04 * ms)
    # Off the mean by 14 and 10 of 100 tokens: 2 * 296 in squares, beside one token's variances of
    # 2 * (64 * 36 + 60 * 40). Experts 0 and 2 of a GPU are used together by 4 of 100 tokens.
    one_token = 0.64 * 0.36 + 0.6 * 0.4 + 2 * (0.04 - 0.64 * 0.4)
    unknown = 0.5**2 * 296 / 4704 * one_token
    slowest = 1 + (0.02**2 + unknown) ** 0.5
    assert plan.guarded.after.step_s * 1e3 == pytest.approx(slowest * ms)
    less = 1 - plan.guarded.after.step_s / plan.guarded.before.step_s
    assert plan.reason.startswith(
        f"with 50% unknown traffic the MoE layers of a step take {less:.1%}"
    )


def test_the_best_there_is_has_no_gap_in_the_traffic_it_was_made_for() -> None:
    assert planned(0.5, "exhaustive").gap == 0


def test_whether_a_guarded_plan_pays_is_asked_of_the_traffic_it_is_made_for() -> None:
    together, apart = [0, 3, 1, 2], [0, 2, 1, 3]
    assert isinstance(answer(world(0, together), "exhaustive"), Hold)
    assert by_gpu(planned(0.5, "exhaustive", together)) == APART
    assert isinstance(answer(world(0.5, apart), "exhaustive"), Hold)


def test_a_guarded_plan_is_measured_on_its_trace_and_expected_of_the_mixture() -> None:
    problem = world(0.5)
    solution = solve(problem, "eplb")
    assert isinstance(solution, Solution)
    plan = make_plan(problem, solution, Provenance("eplb"), fit=TWO_KINDS)
    assert isinstance(plan, Plan)
    assert plan.fit is not None
    assert plan.guarded is not None
    assert (plan.fit.after.basis, plan.guarded.after.basis) == ("measured", "expected")


@pytest.mark.parametrize(("guard", "told"), [(0.0, True), (0.5, False)])
def test_who_plans_with_a_guard_is_not_told_to(guard: float, told: bool) -> None:
    plan = answer(a_problem(differing(1), objective=Objective(guard=guard)), "eplb")
    assert isinstance(plan, Plan)
    assert any("--guard" in note for note in plan.notes) is told
