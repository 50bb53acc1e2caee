"""Rules for the size of a pool, on worlds of a few readings."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.config import Hours
from controller.fleet.signals import Reading, Signals
from controller.policies.autoscale import RULES, autoscale
from controller.policies.horizontal import horizontal
from controller.policies.policy import Decision, Past, Scaling, Seen, Size
from controller.policies.quantile import by_quantile, quantile
from controller.policies.threshold import threshold
from controller.samples import Histogram, Sample
from controller.size_settings import Autoscale
from placer.cost import score
from placer.plan import Comparison, Hold, Plan
from tests.builders import a_problem, random_trace
from tests.controller.tiny_pool import GOAL, a_policy

NOTHING = Hold("no plan")
NOON_S = 12 * 3600.0
SETTINGS = Autoscale(
    ttft_s=2.0, tpot_s=0.1, least=1, most=8, window_s=10.0, load=0.5, quantile=0.9,
    stabilisation_s=30.0, cooldown_s=10.0, requests=4.0,
)  # fmt: skip
BOUNDS = (1.0, 2.0, 4.0)  # of a histogram of first tokens


def readings(
    per_s: float = 10.0, waiting: float = 0.0, late: float = 0.0, running: float = 4.0
) -> Signals:
    """Twelve seconds in which ``per_s`` requests of 100 tokens came and were computed each second,
    ``late`` of each ten after 3 s and the others within one. ``waiting``: at the end"""
    told = []
    for second in range(13):
        done = per_s * second
        first = Histogram(BOUNDS, (done * (10 - late) / 10, 0.0, done * late / 10, 0.0))
        sums = Sample(
            ttft=first, running=running, waiting=waiting if second == 12 else 0.0, finished=done,
            finished_prompt_tokens=100 * done, prompt_tokens=100 * done,
        )  # fmt: skip
        told.append(Reading(float(second), 2, done, sums))
    return Signals(tuple(told))


def a_scaling(signals: Signals | None = None, ranks: int = 2, **more: Any) -> Scaling:
    """Ranks compute 1,000 prompt tokens a second at full speed."""
    more.setdefault("full_rate", 1_000.0)
    return Scaling(signals or readings(), Size(ranks), **more)


def decide(scaling: Scaling | None, settings: Autoscale | None = SETTINGS, **more: Any) -> Decision:
    policy = a_policy(mode=more.pop("mode", "automatic"), autoscale=settings, **more)
    decision = autoscale(Seen(NOTHING, Past(), policy, NOON_S, scaling))
    assert decision is not None
    return decision


def test_it_has_ranks_for_the_work_at_the_load_that_is_planned() -> None:
    """10 requests/s of 100 tokens are 1,000 tokens/s: at half of full speed two ranks."""
    assert by_quantile(a_scaling(), SETTINGS, NOTHING).gpus == 2
    assert by_quantile(a_scaling(), replace(SETTINGS, load=1.0), NOTHING).gpus == 1
    assert by_quantile(a_scaling(readings(40.0)), SETTINGS, NOTHING).gpus == 8


def test_it_computes_a_backlog_in_half_of_the_time_that_is_left() -> None:
    """2 s less 0.4 s of a change and 1 s to the next look leave 0.6 s, of which half is less than a
    quarter of the objective: 20 requests of 100 tokens in 0.5 s are 4 ranks more."""
    wish = by_quantile(a_scaling(readings(waiting=20.0), resize_s=0.4), SETTINGS, NOTHING)
    assert wish.gpus == 2 + 4
    assert "20 requests of 100 to compute in 0.5 s, 1,000 tokens/s a rank" in wish.reason
    slower = replace(SETTINGS, ttft_s=7.0)  # (7 - 1) / 2: 20 requests in 3 s are 2/3 of a rank
    assert by_quantile(a_scaling(readings(waiting=20.0)), slower, NOTHING).gpus == 3


def test_it_waits_until_it_knows_what_ranks_compute() -> None:
    assert by_quantile(a_scaling(full_rate=0.0), SETTINGS, NOTHING).gpus == 2


def test_it_widens_for_tokens_that_come_too_slowly() -> None:
    gaps = Histogram((0.05, 0.2), (80.0, 20.0, 0.0))  # 80 and a third of 20 are within 0.1 s
    signals = readings()
    slow = replace(signals.now, sums=replace(signals.now.sums, gaps=gaps))
    wish = by_quantile(a_scaling(Signals((*signals.readings[:-1], slow))), SETTINGS, NOTHING)
    assert wish.gpus == 3
    assert "86.7% of tokens within 0.1 s" in wish.reason


def a_plan_that_saves_a_fifth() -> Plan:
    problem = a_problem(random_trace(0, experts=4))
    before = replace(score(problem, problem.start), step_s=10.0)
    return Plan(GOAL, fit=Comparison(before, replace(before, step_s=8.0)), whole_step_s=10.0)


def test_experts_are_moved_instead_if_that_is_enough() -> None:
    """12 requests/s need 2.4 ranks, and 1.92 after a plan that takes a fifth off a step."""
    plan = a_plan_that_saves_a_fifth()
    wish = by_quantile(a_scaling(readings(12.0)), SETTINGS, plan)
    assert (wish.gpus, wish.instead) == (2, "replan")
    assert by_quantile(a_scaling(readings(13.0)), SETTINGS, plan).instead == ""
    policy = a_policy(mode="automatic", autoscale=SETTINGS)
    decision = autoscale(Seen(plan, Past(), policy, NOON_S, a_scaling(readings(12.0))))
    assert decision is not None
    assert (decision.outcome, decision.plan, decision.size) == ("act", plan, None)


def test_more_replicas_are_proposed_where_engines_can_and_imbalance_is_what_it_is() -> None:
    uneven = a_scaling(readings(12.0), balance=0.8, live=frozenset({"width", "redundancy"}))
    assert decide(uneven).size == Size(2, 1, slots=2)
    assert decide(replace(uneven, live=frozenset({"width"}))).size == Size(3)
    assert decide(replace(uneven, balance=0.9)).size == Size(3)


@pytest.mark.parametrize(("late", "gpus"), [(0.0, 1), (1.0, 1), (2.0, 3)])
def test_the_papers_rule_is_a_step_up_below_the_objective_and_down_at_low_load(
    late: float, gpus: int
) -> None:
    """One of ten late is 90% in time; two ranks that compute 1,000 tokens/s are half used."""
    low = replace(SETTINGS, load=0.6)
    assert threshold(a_scaling(readings(late=late)), low, NOTHING).gpus == gpus


def test_the_papers_rule_keeps_what_is_used_or_waited_for() -> None:
    assert threshold(a_scaling(), SETTINGS, NOTHING).gpus == 2
    low = replace(SETTINGS, load=0.6)
    assert threshold(a_scaling(readings(waiting=1.0)), low, NOTHING).gpus == 2


@pytest.mark.parametrize(("running", "gpus"), [(4.0, 1), (7.5, 2), (8.7, 2), (9.0, 3), (40.0, 10)])
def test_the_horizontal_rule_is_requests_over_their_target(running: float, gpus: int) -> None:
    """4 a rank; on two ranks 7.2 to 8.8 are within the tolerance."""
    assert horizontal(a_scaling(readings(running=running)), SETTINGS, NOTHING).gpus == gpus


def test_more_at_once_fewer_only_down_to_what_was_wanted_lately() -> None:
    quiet = a_scaling(ranks=6, wishes=((31.0, 6), (20.0, 4), (0.0, 2)))
    assert decide(quiet).size == Size(4)
    assert decide(replace(quiet, wishes=((31.0, 6), (20.0, 6)))).outcome == "hold"
    assert decide(replace(quiet, wishes=((31.0, 6),))).size == Size(2)
    assert decide(a_scaling(readings(30.0), wishes=((1.0, 2),))).size == Size(6)


@pytest.mark.parametrize(
    ("rested_s", "failures", "outcome"),
    [(None, 0, "act"), (9.9, 0, "wait"), (10.0, 0, "act"), (10.0, 1, "wait"), (20.0, 1, "act"),
     (639.0, 99, "wait"), (640.0, 99, "act")],
)  # fmt: skip
def test_nothing_changes_within_the_cool_down(
    rested_s: float | None, failures: int, outcome: str
) -> None:
    scaling = a_scaling(readings(30.0), rested_s=rested_s, failures=failures)
    assert decide(scaling).outcome == outcome


def test_mode_hours_and_budgets_are_obeyed() -> None:
    wide = a_scaling(readings(30.0))
    assert decide(wide).reason.startswith("2 ranks -> 6 ranks: 3,000 prompt tokens/s")
    advised = decide(wide, mode="advisory", hours=(Hours(22 * 60, 6 * 60),))
    assert (advised.outcome, advised.size) == ("propose", Size(6))
    closed = decide(wide, hours=(Hours(22 * 60, 6 * 60),))
    assert (closed.outcome, closed.size) == ("wait", None)
    assert closed.reason.endswith("outside the hours of change, 22:00-06:00 UTC")
    assert decide(wide, bytes_per_minute=0).outcome == "wait"


def test_of_what_can_be_had_the_smallest_that_is_enough_else_the_largest() -> None:
    wide = a_scaling(readings(30.0))  # which wants 6
    assert decide(wide, replace(SETTINGS, max_gpus=5)).size == Size(5)
    assert decide(wide, replace(SETTINGS, max_gpus=2)).outcome == "hold"
    assert decide(wide, replace(SETTINGS, max_gpus=4)).size == Size(4)  # and not 2 engines of 2


def test_engines_that_cannot_change_their_width_are_added_to() -> None:
    fixed = a_scaling(readings(30.0), live=frozenset())
    more = replace(SETTINGS, max_gpus=16)
    assert decide(fixed, more).size == Size(2, 2)
    assert decide(replace(fixed, size=Size(2, 3)), more).outcome == "hold"
    assert decide(replace(fixed, signals=readings(5.0), size=Size(2, 2)), more).size == Size(2, 1)


def test_a_width_that_is_enough_goes_before_another_engine_that_others_would_start() -> None:
    """33 GPUs are wanted: 4 engines of 16 are more than 5 of 8, but no person is needed."""
    coarse = replace(SETTINGS, least=8, most=16, step=8)
    wide = replace(a_scaling(readings(165.0)), size=Size(8, 4))
    assert decide(wide, coarse).size == Size(16, 4)
    assert decide(replace(wide, live=frozenset()), coarse).size == Size(8, 5)
    assert decide(wide, replace(coarse, max_gpus=40)).size == Size(8, 5)
    few = replace(wide, signals=readings(120.0))  # 24 are wanted, and none is narrower than 8
    assert decide(few, coarse).size == Size(8, 3)


def test_without_a_setting_or_signals_there_is_nothing_to_say() -> None:
    policy = a_policy()
    assert autoscale(Seen(NOTHING, Past(), policy, NOON_S, a_scaling())) is None
    on = replace(policy, autoscale=SETTINGS)
    assert autoscale(Seen(NOTHING, Past(), on, NOON_S, None)) is None


def test_quantiles_are_values_that_were() -> None:
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.1, 0.5, 0.51, 1.0)] == [
        1,
        2,
        3,
        4,
    ]
    assert quantile([], 0.5) == 0


@given(
    st.sampled_from(sorted(RULES)),
    st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 10), st.integers(1, 8), st.integers(1, 3),
    st.integers(1, 8), st.integers(0, 7), st.integers(1, 4), st.integers(1, 40),
    st.floats(0, 20),
)  # fmt: skip
def test_whatever_is_seen_sizes_stay_within_limits_and_the_same_is_decided_again(
    rule: Any, per_s: float, waiting: float, late: float, ranks: int, engines: int,
    least: int, more: int, step: int, max_gpus: int, rested_s: float,
) -> None:  # fmt: skip
    settings = replace(
        SETTINGS, policy=rule, least=least, most=least + more, step=step, max_gpus=max_gpus
    )
    size = Size(ranks, engines)
    signals = readings(per_s, waiting, late)
    scaling = replace(a_scaling(signals), size=size, rested_s=rested_s)
    decision = decide(scaling, settings)
    assert decision == decide(scaling, settings)
    if rested_s < settings.cooldown_s:
        assert decision.size is None
    if decision.size is not None:
        assert decision.size != size
        smaller = decision.size.gpus < size.gpus
        assert decision.size.gpus <= max_gpus or smaller
        if decision.size.ranks != ranks:
            assert decision.size.ranks in range(least, least + more + 1, step)
        else:
            assert abs(decision.size.engines - engines) == 1
