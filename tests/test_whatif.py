"""Sweeps worked out by hand: an expert takes a token a microsecond, a step has 8 tokens a GPU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.cost import score
from placer.objective import Dispatch, Objective
from placer.trace import Trace
from placer.whatif import Case, Outcome, Study, Verdict, advise, evaluate, judge, knee
from tests.builders import a_model, a_placement, a_problem, a_trace, by_hand, loads

US = 1e-6
# Of 16 tokens of a step: the linear placement puts 12 on GPU 0, 8 and 8 is best.
UNEVEN = [7, 5, 3, 1]
# The hot expert takes 10 wherever it stands, until it has a replica.
HOT = [10, 2, 2, 2]


def a_study(load: Sequence[int], **more: Any) -> Study:
    """Eight steps' worth of ``load`` tokens of each expert, the same in two layers."""
    profile = loads([[8.0 * tokens for tokens in load]] * 2)
    return Study(a_model(), profile, Objective(tokens_per_gpu=8), **more)


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
    assert found.gain == pytest.approx(1 / 3)
    assert found.tokens_per_s == pytest.approx(8 / (16 * US))


def test_without_a_holdout_the_noise_is_that_of_drawing_tokens() -> None:
    # A GPU's share of 128 tokens p has variance p / 128, a step takes 16 us of it: 128 us^2 / 128
    # a layer, for the mean GPU 0.5; half of that is an rms's. Two layers: 1 us, twice for surety.
    assert evaluate(a_study(UNEVEN), a_case()).noise == pytest.approx(2 / 24)


def test_redundancy_is_judged_against_the_linear_placement_without_any() -> None:
    found = evaluate(a_study(HOT), a_case(redundant=2))
    # Before: experts 0 and 1 alone on GPU 0. Linear with two more slots would take 11 us a layer.
    assert steps(found) == pytest.approx((24 * US, 16 * US))
    assert found.before is not None
    assert found.before.balancedness == pytest.approx(8 / 12)
    assert found.gain == pytest.approx(1 / 3)


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
    assert found.gain == pytest.approx(1 / 5)
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
    # One gains a third and one nothing: 1/6 on average, two standard errors being 2 x 1/6.
    found = evaluate(a_study(UNEVEN, holdout=sequences(UNEVEN, [4, 4, 4, 4])), a_case())
    assert (found.gain, found.noise) == pytest.approx((1 / 6, 1 / 3))
    assert judge(found, None)[0] == "insufficient_evidence"


def test_many_sequences_are_compared_in_eight_parts() -> None:
    # Each part has a sequence of both kinds, 20 of 32 tokens on a GPU instead of 16: all alike.
    both = [UNEVEN] * 8 + [[4, 4, 4, 4]] * 8
    found = evaluate(a_study(UNEVEN, holdout=sequences(*both)), a_case())
    assert (found.gain, found.noise) == pytest.approx((1 / 5, 0))


def test_one_held_out_sequence_says_nothing_of_noise_but_the_profile_does() -> None:
    alone = evaluate(a_study(UNEVEN, holdout=sequences([4, 4, 4, 4])), a_case())
    assert (alone.gain, alone.noise) == pytest.approx((1 / 3, 2 / 24))


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


def test_an_unknown_optimizer_is_said_of_every_case() -> None:
    found = evaluate(a_study(HOT, optimizer="jiont"), a_case())
    assert "did you mean 'joint'" in found.problem


# The knee


def curve(taken: dict[int, float]) -> list[Outcome]:
    """Outcomes with a step's microseconds by redundant slots."""
    any_score = score(a_problem(loads([HOT])), a_placement([[0, 1, 2, 3]]))
    return [
        Outcome(a_case(slots), after=replace(any_score, step_s=us * US))
        for slots, us in taken.items()
    ]


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
    assert found.best.tokens_per_s == pytest.approx(8 / (16 * US))
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
