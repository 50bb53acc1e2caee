"""Ten milliseconds saved a step, two steps a second, a minute: 1.2 s, against moves of 1 s."""

from dataclasses import replace

import pytest

from placer.cost import moves, steps
from placer.cost.moves import MoveCost
from placer.errors import PlacementError
from placer.objective import Objective
from placer.optimizers.joint import terms
from placer.pace import Pace
from placer.plan import Hold, Plan, Provenance, Solution
from placer.planner import make_plan
from placer.problem import Problem
from placer.profile import Profile
from tests.builders import a_model, a_placement, a_problem, a_topology, by_hand, loads

TOKENS = 20_000  # of a step, half of them from each of 2 GPUs
# Experts 0 and 1 have all of the traffic: GPU 0 takes 20 ms a step, then both take 10 ms.
ALL_ON_ONE = loads([[1_000_000, 1_000_000, 0, 0]])
RUNNING, SWAPPED = a_placement([[0, 1, 2, 3]]), a_placement([[0, 2, 1, 3]])


def a_world(profile: Profile = ALL_ON_ONE, **objective: float) -> Problem:
    """Where a step's MoE layer takes 20 ms, and a minute is the horizon."""
    wanted = Objective(tokens_per_gpu=TOKENS // 2, max_moved=1.0, **objective)  # type: ignore[arg-type]
    problem = a_problem(profile, objective=wanted, current=RUNNING, model=a_model(layers=1))
    return replace(problem, topology=by_hand())


def measured(steps: int, busy_s: float, window_s: float) -> Profile:
    return replace(ALL_ON_ONE, pace=Pace(steps, busy_s, window_s))


@pytest.mark.parametrize(
    ("profile", "busy", "per_s"),
    [
        (replace(ALL_ON_ONE, window_s=50.0), 1.0, 2.0),  # 2 million tokens are 100 steps
        (replace(ALL_ON_ONE, window_s=1.0), 1.0, 50.0),  # of 20 ms, no more fit into a second
        (ALL_ON_ONE, 1.0, 50.0),
        (ALL_ON_ONE, 0.04, 2.0),
        (measured(20, 1.0, 10.0), 1.0, 2.0),  # of 50 ms, a tenth of the time
        (measured(200, 1.0, 10.0), 1.0, 5.0),  # of 5 ms: a quarter of the step that is modelled
        (replace(measured(20, 1.0, 10.0), window_s=1.0), 0.5, 2.0),  # what is measured counts
        (replace(measured(0, 0.0, 10.0), window_s=50.0), 1.0, 2.0),  # nothing was
    ],
)
def test_steps_a_second(profile: Profile, busy: float, per_s: float) -> None:
    problem = a_world(profile, busy=busy)
    assert steps.rate(problem, moe_s=0.02).per_s == pytest.approx(per_s)


@pytest.mark.parametrize(
    ("profile", "basis"),
    [
        (measured(20, 1.0, 10.0), "measured, 10% of the time busy"),
        (replace(ALL_ON_ONE, window_s=50.0), "2,000,000 tokens in 50 s, 20,000 a step"),
        (
            replace(ALL_ON_ONE, window_s=1.0),
            "2,000,000 tokens in 1 s are more than the MoE layers let through: always busy",
        ),
        (ALL_ON_ONE, "taken to be busy 30% of the time"),
    ],
)
def test_what_was_assumed_is_told(profile: Profile, basis: str) -> None:
    assert steps.rate(a_world(profile, busy=0.3), moe_s=0.02).basis == basis


def test_no_plan_is_paid_for_more_seconds_than_engines_work() -> None:
    """A modelled step of 20 ms, and real ones of 5 ms: half saved is half of the busy second."""
    per_s = steps.rate(a_world(measured(200, 1.0, 10.0)), moe_s=0.02).per_s
    assert 10 * per_s * 0.01 == pytest.approx(0.5)


@pytest.mark.parametrize(("move_s", "pays"), [(1.0, True), (1.4, False)])
@pytest.mark.parametrize(
    ("profile", "busy"),
    [
        (replace(ALL_ON_ONE, window_s=50.0), 1.0),
        (measured(100, 5.0, 50.0), 1.0),
        (ALL_ON_ONE, 0.04),
    ],
)
def test_a_plan_pays_in_the_steps_of_its_horizon(
    profile: Profile, busy: float, move_s: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "cost", lambda *_: MoveCost(2, 0.5, 100, 0, move_s))
    answer = make_plan(a_world(profile, busy=busy), Solution(SWAPPED), Provenance("by hand"))
    told = answer.notes[-1] if isinstance(answer, Plan) else answer.reason
    assert isinstance(answer, Plan if pays else Hold)
    assert "wins 1.2 s in 60 s: 9.99 ms a step, 2 steps a second (" in told
    assert f"{move_s:g} s" in told


def test_both_shares_are_told_where_the_whole_step_is_known() -> None:
    answer = make_plan(a_world(measured(20, 1.0, 10.0)), Solution(SWAPPED), Provenance("by hand"))
    assert isinstance(answer, Plan)
    assert answer.gain == pytest.approx(0.5)
    assert answer.whole_gain == pytest.approx(0.2)
    assert answer.reason == (
        "the MoE layers of a step take 50.0% less time and a whole step 20.0% for 2 moved slots"
    )


def test_of_steps_that_are_smaller_than_the_models_the_share_is_not_known() -> None:
    """Whole ones of 5 ms, where the model's MoE layers take 20."""
    answer = make_plan(a_world(measured(200, 1.0, 10.0)), Solution(SWAPPED), Provenance("by hand"))
    assert isinstance(answer, Plan)
    assert answer.whole_gain is None
    assert answer.reason == "the MoE layers of a step take 50.0% less time for 2 moved slots"


def test_the_rarer_the_steps_the_dearer_is_a_move_to_the_search() -> None:
    """Twice as many steps in the horizon, half the price a step."""
    rare, often = (
        terms.price(replace(a_world(measured(n, n / 20, 10.0)), topology=a_topology()))
        for n in (20, 40)
    )
    assert rare > 0
    assert rare == pytest.approx(2 * often)


@pytest.mark.parametrize("busy", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_of_the_time_is_above_0_and_at_most_1(busy: float) -> None:
    with pytest.raises(PlacementError, match=r"busy is .*: it must be"):
        Objective(busy=busy)
