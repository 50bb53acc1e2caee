"""Sweeps worked out by hand: an expert takes a token a microsecond, a step has 8 tokens a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.cost import score
from placer.errors import PlacementError
from placer.model import ModelShape
from placer.objective import DISPATCHES, Dispatch, Objective
from placer.profile import of_trace
from placer.trace import Trace
from placer.trials import Case, Outcome, Study, evaluate
from placer.whatif import Verdict, advise, judge, knee
from tests.builders import a_model, a_placement, a_problem, a_topology, a_trace, by_hand, loads

US = 1e-6
# Of 16 tokens of a step: the linear placement puts 12 on GPU 0, 8 and 8 is best.
UNEVEN = [7, 5, 3, 1]
# The hot expert takes 10 wherever it stands, until it has a replica.
HOT = [10, 2, 2, 2]


def a_study(load: Sequence[int], steps: float = 1e9, **more: Any) -> Study:
    """So many steps' worth of ``load`` tokens of each expert, the same in two layers."""
    profile = loads([[steps * tokens for tokens in load]] * 2)
    return Study(a_model(), profile, Objective(tokens_per_gpu=8), **more)


SHORT = 8  # steps of a recording in which chance counts
LITTLE = 1e-4  # of what it does in a long one


def a_case(redundant: int = 0, gpus: int = 2) -> Case:
    return Case(by_hand(gpus), redundant, "allgather")


def sequences(*each: Sequence[int]) -> Trace:
    """Held-out sequences by their tokens of each expert, the same in two layers."""
    tokens = [[[e], [e]] for load in each for e, count in enumerate(load) for _ in range(count)]
    return a_trace(tokens, seq_lens=[sum(load) for load in each])


def steps(outcome: Outcome) -> tuple[float, float]:
    """Seconds of a step before and after."""
    assert outcome.before is not None
    assert outcome.after is not None
    return outcome.before.step_s, outcome.after.step_s


def test_a_case_is_planned_and_its_step_told_in_seconds() -> None:
    found = evaluate(a_study(UNEVEN), a_case())
    # Two layers, each as long as the GPU with 12 tokens and then with 8.
    assert steps(found) == pytest.approx((24 * US, 16 * US))
    assert found.gain == pytest.approx(1 / 3, rel=LITTLE)
    assert found.tokens_per_s == pytest.approx(8 / (16 * US), rel=LITTLE)


def test_redundancy_is_judged_against_the_linear_placement_without_any() -> None:
    found = evaluate(a_study(HOT), a_case(redundant=2))
    # Before: experts 0 and 1 alone on GPU 0. Linear with two more slots would take 11 us a layer.
    assert steps(found) == pytest.approx((24 * US, 16 * US))
    assert found.before is not None
    assert found.before.balancedness == pytest.approx(8 / 12)
    assert found.gain == pytest.approx(1 / 3, rel=LITTLE)


def test_weights_leave_the_rest_to_the_kv_cache() -> None:
    # 90% of 10 kB, less 3 slots of each GPU in 2 layers, of 3 x 8 x 4 weights of 2 bytes.
    assert evaluate(a_study(HOT), a_case(redundant=2)).kv_bytes == 9000 - 3 * 2 * 192


def test_experts_that_do_not_divide_by_the_gpus_get_the_slots_that_it_takes() -> None:
    found = evaluate(a_study(HOT), a_case(gpus=3))
    assert found.problem == ""
    assert found.kv_bytes == 9000 - 2 * 2 * 192  # 6 slots


def test_a_running_plan_of_the_same_shape_is_what_runs_otherwise() -> None:
    running = a_placement([[0, 2, 1, 3]] * 2)
    study = a_study(UNEVEN, current=running, optimizer="eplb")
    found = evaluate(study, a_case())
    # GPU 0 has 7 + 3 tokens; experts 2 and 3 change places in both layers.
    assert steps(found) == pytest.approx((20 * US, 16 * US))
    assert found.gain == pytest.approx(1 / 5, rel=LITTLE)
    assert found.moved == pytest.approx(4 / 8)
    assert found.against == "the current plan"


def test_a_running_plan_of_another_shape_is_not_compared_with() -> None:
    running = a_placement([[0, 2, 1, 0, 3, 1]] * 2)
    found = evaluate(a_study(UNEVEN, current=running), a_case())
    assert steps(found)[0] == pytest.approx(24 * US)
    assert found.moved is None


def test_a_running_plan_without_redundancy_is_what_more_slots_are_compared_with() -> None:
    running = a_placement([[0, 2, 1, 3]] * 2)
    found = evaluate(a_study(UNEVEN, current=running), a_case(2))
    assert steps(found)[0] == pytest.approx(20 * US)
    assert (found.moved, found.against) == (None, "the current plan")


def test_figures_are_those_of_the_held_out_sequences() -> None:
    # The profile wants 0 with 3 and 1 with 2. Here that takes 12 and 4, linear takes 3 and 13.
    found = evaluate(a_study(UNEVEN, holdout=sequences([2, 1, 3, 10], [2, 1, 3, 10])), a_case())
    assert steps(found) == pytest.approx((26 * US, 24 * US))
    assert found.gain == pytest.approx(1 / 13)
    assert found.tokens_per_s == pytest.approx(8 / (24 * US))


def test_held_out_sequences_that_agree_leave_no_noise() -> None:
    found = evaluate(a_study(UNEVEN, holdout=sequences(UNEVEN, UNEVEN, UNEVEN)), a_case())
    assert (found.gain, found.noise) == pytest.approx((1 / 3, 0))


def test_held_out_sequences_that_differ_make_noise() -> None:
    # Half of them save 8 of 24 us and half nothing: 4 of 20 on the whole.
    both = [[UNEVEN, [4, 4, 4, 4]][at % 2] for at in range(6)]
    found = evaluate(a_study(UNEVEN, holdout=sequences(*both)), a_case())
    assert found.gain == pytest.approx(1 / 5)
    # Six savings of 4 +- 4 us have a standard error of 4 / sqrt(5) us; chance exceeds 5.893 of
    # them once in a thousand (Student's t of 5 degrees of freedom, from a table).
    assert found.noise == pytest.approx(5.893 * 4 / 5**0.5 / 20, rel=1e-3)
    assert judge(found, None)[0] == "insufficient_evidence"


def test_the_more_cases_the_best_is_chosen_from_the_more_is_chance() -> None:
    both = sequences(*[UNEVEN, [4, 4, 4, 4]] * 3)
    found = evaluate(a_study(UNEVEN, holdout=both, cases=10), a_case())
    # 9.678 is exceeded once in ten thousand.
    assert found.noise == pytest.approx(9.678 * 4 / 5**0.5 / 20, rel=1e-3)


def test_many_sequences_are_compared_in_sixteen_parts() -> None:
    # Each part has a sequence of both kinds, 20 of 32 tokens on a GPU instead of 16: all alike.
    both = [UNEVEN] * 16 + [[4, 4, 4, 4]] * 16
    found = evaluate(a_study(UNEVEN, holdout=sequences(*both)), a_case())
    assert (found.gain, found.noise) == pytest.approx((1 / 5, 0))


def test_of_one_held_out_sequence_nothing_is_known_but_its_figures() -> None:
    alone = evaluate(a_study(UNEVEN, holdout=sequences([4, 4, 4, 4])), a_case())
    assert (alone.gain, alone.noise) == pytest.approx((0, 1))
    assert judge(alone, None)[0] == "insufficient_evidence"


# Without a hold-out


def test_what_a_plan_fits_of_chance_is_taken_off_its_gain() -> None:
    """The shorter the recording, the more: here 128 tokens, and 2,048."""
    short, longer = (evaluate(a_study(UNEVEN, steps), a_case()) for steps in (SHORT, 16 * SHORT))
    for found in (short, longer):
        assert found.after is not None
        assert found.after.step_s == pytest.approx(16 * US)
        assert 16 * US < found.step_s < 17 * US
        assert found.gain == pytest.approx(1 - found.step_s / (24 * US))
        assert found.tokens_per_s == pytest.approx(8 / found.step_s)
    # A sixteenth of the noise's square, a quarter of the noise.
    assert short.step_s - 16 * US == pytest.approx(4 * (longer.step_s - 16 * US), rel=0.5)


def test_a_plan_that_wins_nothing_has_fitted_nothing() -> None:
    found = evaluate(a_study(HOT, SHORT), a_case())
    assert (found.gain, found.step_s) == pytest.approx((0, 24 * US))


def test_without_a_holdout_the_noise_is_that_of_drawing_tokens_at_least() -> None:
    # A GPU's share of 128 tokens p has variance p / 128, a step takes 16 us of it: 128 us^2 / 128
    # a layer, for the mean GPU 0.5; half of that is an rms's. Two layers: 1 us, and 3.09 of them
    # are exceeded once in a thousand.
    assert evaluate(a_study(UNEVEN, SHORT), a_case()).noise >= 3.09 / 24
    assert evaluate(a_study(UNEVEN), a_case()).noise < LITTLE


# What the slots win, and what knowing the traffic


def test_slots_that_spare_every_journey_win_that_whatever_the_traffic() -> None:
    """Both experts on both GPUs: no token leaves its home any more, whichever it chooses."""
    seen = a_trace([[[0], [1]], [[1], [0]]] * 2, experts=2, seq_lens=[2, 2])
    study = Study(a_model(experts=2), loads([[8e9, 8e9]] * 2), Objective(), holdout=seen)
    found = evaluate(study, Case(a_topology(), 2, "dedup"))
    assert found.before is not None
    links_s = found.before.dispatch_s + found.before.combine_s
    assert found.gain == pytest.approx(links_s / found.before.step_s)
    assert found.gain > 0.1
    assert (found.blind_gain, found.traffic_gain) == pytest.approx((found.gain, 0))
    verdict, reason = judge(found, seen)
    assert verdict == "not_recommended"
    assert f"the slots alone, filled blind to the traffic, win {found.gain:.1%}" in reason
    assert reason.endswith("the slots may be worth it, knowing the traffic is not")


def test_without_more_slots_all_of_the_gain_is_from_knowing_the_traffic() -> None:
    found = evaluate(a_study(UNEVEN, holdout=sequences(UNEVEN, UNEVEN)), a_case())
    assert (found.blind_gain, found.traffic_gain) == pytest.approx((0, 1 / 3))


def test_replicas_of_the_hot_expert_need_to_know_it() -> None:
    """Blind, two of four experts have replicas, whichever: not always the hot one."""
    found = evaluate(a_study(HOT, holdout=sequences(HOT, HOT)), a_case(redundant=2))
    assert found.gain > 1 / 4
    assert 0 <= found.blind_gain < found.gain


def test_what_runs_is_compared_with_where_it_beats_the_slots_filled_blind() -> None:
    """It has the traffic's best placement: there is nothing to win over it."""
    running = a_placement([[0, 1, 2, 0, 3, 1]] * 2)
    seen = sequences(HOT, HOT)
    found = evaluate(a_study(HOT, holdout=seen, current=running), a_case(redundant=2))
    assert (found.gain, found.blind_gain, found.traffic_gain) == pytest.approx((0, 0, 0))


@pytest.mark.parametrize("redundant", [0, 4])
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("tokens", [100, 2000])
@pytest.mark.parametrize("known", ["trace", "profile", "loads"])
def test_a_router_that_chooses_every_expert_alike_is_not_worth_knowing(
    known: str, tokens: int, dispatch: Dispatch, redundant: int
) -> None:
    model = ModelShape("even", 3, 16, 4, hidden=2048, moe_intermediate=1024)
    drawn = np.random.default_rng(tokens).random((tokens, 3, 16)).argsort(axis=2)[:, :, :4]
    trace = Trace(drawn, np.full(tokens // 10, 10), 16)
    fit, seen = trace.split(0.5, 0) if known == "trace" else (trace, None)
    profile = of_trace(fit)
    if known == "loads":
        profile = replace(profile, coactivation=None, transitions=None, spread=None)
    study = Study(model, profile, Objective(), seen)
    found = evaluate(study, Case(a_topology(4), redundant, dispatch))
    assert found.traffic_gain - found.noise < 0
    assert judge(found, seen)[0] != "recommended"


@pytest.mark.parametrize(
    ("redundant", "problem"),
    [
        (1, "5 slots do not divide by 2 GPUs: use 4 (--redundant 0) or 6 (--redundant 2)"),
        (6, "5 slots a GPU clash with 4 experts"),
        (200, "204 slots clash with 0.0 GB of memory"),
    ],
)
def test_a_case_that_cannot_be_has_its_reason_and_nothing_else(
    redundant: int, problem: str
) -> None:
    found = evaluate(a_study(HOT), a_case(redundant))
    assert found.problem.startswith(problem)
    assert replace(found, problem="") == Outcome(a_case(redundant))


def test_no_study_has_an_unknown_optimizer() -> None:
    with pytest.raises(PlacementError, match="did you mean 'joint'"):
        a_study(HOT, optimizer="jiont")


# The knee


def curve(taken: dict[int, float]) -> list[Outcome]:
    """Outcomes with a step's microseconds by redundant slots."""
    any_score = score(a_problem(loads([HOT])), a_placement([[0, 1, 2, 3]]))
    return [Outcome(a_case(slots), after=any_score, step_s=us * US) for slots, us in taken.items()]


@pytest.mark.parametrize(
    ("taken", "slots"),
    [
        ({0: 12, 2: 8, 4: 8}, 2),
        ({0: 100, 16: 70, 32: 60, 64: 50}, 16),  # 17.5 below the line, 15 a step later
        ({0: 100, 8: 80, 64: 50}, 8),  # 8 slots are an eighth of the way and two fifths of the win
        ({4: 8, 0: 12, 2: 8}, 2),
        ({0: 12, 4: 9}, 4),
        ({0: 12, 2: 10, 4: 8}, 4),  # as much again for the same: no knee, more pays to the end
        ({0: 12, 2: 11.9, 4: 8}, 4),  # or even more
        ({0: 12, 2: 8, 4: 13}, 2),  # more slots can be slower: what they hold must be read
    ],
)
def test_the_knee_is_where_more_slots_stop_paying(taken: dict[int, float], slots: int) -> None:
    assert knee(curve(taken)).case.redundant == slots


@pytest.mark.parametrize("taken", [{0: 12, 2: 11.9, 4: 11.9}, {0: 12, 4: 12}, {0: 12, 4: 13}])
def test_redundancy_that_wins_less_than_a_hundredth_is_left_out(taken: dict[int, float]) -> None:
    assert knee(curve(taken)).case.redundant == 0


@given(st.dictionaries(st.integers(0, 64), st.floats(1, 100), min_size=1, max_size=6))
def test_whatever_has_fewer_slots_than_the_knee_is_slower(taken: dict[int, float]) -> None:
    slots = knee(curve(taken)).case.redundant
    assert all(us > taken[slots] for fewer, us in taken.items() if fewer < slots)


# The advice


def test_the_best_of_all_knees_lets_most_tokens_through() -> None:
    cases = [a_case(slots, gpus) for gpus in (4, 2) for slots in (0, 2, 4) if gpus + slots < 8]
    found = advise(a_study(HOT), cases, map)
    # On 4 GPUs a step has 32 tokens, 20 of them on the slowest. Two more slots leave two GPUs bare.
    after = [outcome.after and round(outcome.after.step_s / US) for outcome in found.outcomes]
    assert after == [40, None, 24, 16, 16]
    assert [knee.case for knee in found.knees] == [a_case(0, gpus=4), a_case(2)]
    assert found.best is found.knees[1]
    assert found.best.tokens_per_s == pytest.approx(8 / (16 * US), rel=LITTLE)
    assert found.verdict == "recommended"
    assert "33.3%" in found.reason


def test_dispatch_modes_have_knees_of_their_own() -> None:
    modes: tuple[Dispatch, ...] = ("dedup", "allgather")
    cases = [Case(by_hand(), slots, how) for how in modes for slots in (0, 2)]
    found = advise(a_study(HOT), cases, map)
    assert [knee.case for knee in found.knees] == [cases[1], cases[3]]


def test_nothing_is_recommended_where_no_case_can_be() -> None:
    found = advise(a_study(HOT), [a_case(1), a_case(3)], map)
    assert (found.best, found.knees) == (None, ())
    assert (found.verdict, found.reason) == ("not_recommended", "no case keeps its limits")


@pytest.mark.parametrize(
    ("gain", "noise", "verdict"),
    [
        (0.10, 0.02, "recommended"),
        (0.10, 0.095, "insufficient_evidence"),  # might be half a percent, which is not worth it
        (0.012, 0.0, "recommended"),
        (0.008, 0.0, "not_recommended"),
        (0.004, 0.003, "not_recommended"),
        (0.004, 0.03, "insufficient_evidence"),
        (-0.05, 0.02, "not_recommended"),
        (-0.05, 0.2, "insufficient_evidence"),
    ],
)
def test_a_gain_counts_as_far_as_it_is_sure(gain: float, noise: float, verdict: Verdict) -> None:
    found, reason = judge(Outcome(a_case(), gain=gain, noise=noise), None)
    assert found == verdict
    assert f"{abs(gain):.1%} {'more' if gain < 0 else 'less'} time" in reason
    assert f"noise {noise:.1%}" in reason
    assert "2 GPUs in 1 node (by hand), 0 redundant, allgather" in reason


def test_the_sentence_says_what_was_compared_with_what_on_what() -> None:
    best = Outcome(a_case(), gain=0.3, against="the linear placement")
    _, linear = judge(best, None)
    assert "than with the linear placement (noise" in linear
    assert "the profile alone, without a hold-out" in linear
    _, running = judge(replace(best, against="the current plan"), sequences(HOT))
    assert "the current plan" in running
    assert "held-out sequences" in running


def test_a_sentence_ends_with_what_to_do_about_it() -> None:
    _, small = judge(Outcome(a_case(), gain=0.001), None)
    _, unsure = judge(Outcome(a_case(), gain=0.1, noise=0.2), None)
    assert small.endswith("not worth a change")
    assert unsure.endswith("a longer recording would tell")
