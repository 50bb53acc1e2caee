"""A worker of 2 layers x 4 experts, 4 slots, on 2 ranks."""

import pytest

from placer.objective import Objective
from placer.placement import EMPTY
from placer.plan import Plan
from placer.refusal import refusal
from placer.worker import Worker
from tests.agent.workers import a_plan, a_worker
from tests.builders import a_model

TWICE = [[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 0, 1]]  # the last rank holds 0 twice at layer 0


@pytest.mark.parametrize(
    ("plan", "worker"),
    [
        (a_plan(), a_worker()),
        (a_plan([[3, 2, 1, 0], [0, 2, 1, 3]]), a_worker(1)),
        (a_plan([[0, 1, 2, 3, 0, 1]] * 2), a_worker(slots=6)),
        (a_plan(TWICE, objective=Objective(allow_duplicates=True)), a_worker(slots=6)),
    ],
    ids=["in order", "moved", "redundant", "duplicates allowed"],
)
def test_a_plan_that_fits_is_not_refused(plan: Plan, worker: Worker) -> None:
    assert refusal(plan, worker) == ""


@pytest.mark.parametrize(
    ("plan", "worker", "parts"),
    [
        (a_plan(), a_worker(can_apply=False), ["is off", "--enable-eplb"]),
        (
            a_plan([[0, 1, 2, 3]]),
            a_worker(),
            ["1 layers x 4 experts", "2 layers x 4 experts", "plan for that model"],
        ),
        (
            a_plan([[0, 1]] * 2, experts=2),
            a_worker(),
            ["2 layers x 2 experts", "tiny, 2 layers x 4 experts", "plan for that model"],
        ),
        (
            a_plan([[0, 1, 2, 3]], model=a_model(layers=1)),
            a_worker(model="other"),
            ["for tiny, 1 layers", "serves other, 2 layers", "plan for that model"],
        ),
        (a_plan(gpus=4), a_worker(), ["4 ranks", "has 2", "--gpus 2"]),
        (
            a_plan([[0, 1, 2, 3, 0, 1]] * 2),
            a_worker(),
            ["6 slots", "engine 4", "--redundant 0"],
        ),
        (a_plan(), a_worker(slots=6), ["4 slots", "engine 6", "--redundant 2"]),
        (
            a_plan([[0, 1, 2, 3, 0, EMPTY], [0, 1, 2, 3, 0, 1]]),
            a_worker(slots=6),
            ["1 slots empty", "without --uneven", "--optimizer joint"],
        ),
        (
            a_plan([[0, 1, 2, 3], [0, 1, 2, 2]]),
            a_worker(),
            ["layer 1: no slot holds expert 3"],
        ),
        (a_plan(TWICE), a_worker(slots=6), ["layer 0: GPU 1 holds expert 0 2 times"]),
        (
            a_plan(objective=Objective(survive_node=True)),
            a_worker(),
            ["layer 0: expert 0 is on node 0 alone"],
        ),
    ],
    ids=[
        "no balancer",
        "other layers",
        "other experts",
        "other model",
        "other ranks",
        "more slots",
        "fewer slots",
        "empty slots",
        "an expert is lost",
        "a duplicate",
        "on one node",
    ],
)
def test_a_refusal_names_both_values_and_the_remedy_on_one_line(
    plan: Plan, worker: Worker, parts: list[str]
) -> None:
    reason = refusal(plan, worker)
    for part in parts:
        assert part in reason
    assert "\n" not in reason


def test_what_is_most_basic_is_said_first() -> None:
    """Of a plan for another model, on other ranks, with empty slots."""
    plan = a_plan([[0, 1, EMPTY]], experts=2, gpus=3)
    assert "plan for that model" in refusal(plan, a_worker())
    assert "--enable-eplb" in refusal(plan, a_worker(can_apply=False))
