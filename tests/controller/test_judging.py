"""Plans judged on requests that they were not made from: 2 layers x 4 experts on 2 ranks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from controller.config import Traces
from controller.engines.planning import answer
from controller.fleet.traces import Request
from controller.ports import Unseen
from placer.files.plans import plan_text
from placer.objective import Objective
from placer.placement import Placement
from placer.plan import Hold, Plan
from placer.trace import Trace
from tests.builders import a_placement, a_problem, loads
from tests.controller.tiny_pool import (
    HOME,
    POOL,
    SKEWED,
    World,
    alike,
    decided,
    in_virtual_time,
)

TURNED = [[400, 100, 400, 100]] * 2  # what is even for SKEWED is uneven for this, and HOME even
TOLD = "2 sampled requests from before its window"


def a_trace(rows: list[int], **more: Any) -> Trace:
    """Of two requests; in both layers a token goes to the same expert, as often as rows say."""
    experts = np.repeat(np.arange(4), rows)
    ids = np.stack([experts, experts], axis=1)[:, :, None]
    half = len(ids) // 2
    return Trace(ids, np.array([half, len(ids) - half]), 4, **more)


def judged(unseen: Unseen | None, current: Placement = HOME) -> Plan | Hold:
    problem = a_problem(profile=loads(SKEWED), current=current, objective=Objective(max_moved=1))
    found = answer(problem, "eplb", unseen)
    assert isinstance(found, Plan | Hold)
    return found


def test_a_plan_that_wins_there_too_says_so_and_has_the_figures() -> None:
    plain, plan = judged(None), judged(Unseen(TOLD, a_trace(SKEWED[0])))
    assert isinstance(plain, Plan)
    assert isinstance(plan, Plan)
    assert plan.holdout is not None
    assert plan.holdout.before.basis == "measured"
    gain = 1 - plan.holdout.after.step_s / plan.holdout.before.step_s
    assert plan.reason == f"{plain.reason}; {gain:.1%} less on {TOLD}"
    assert plan.placement.digest == plain.placement.digest


def test_a_plan_that_loses_there_is_held() -> None:
    held = judged(Unseen(TOLD, a_trace(TURNED[0])))
    assert isinstance(held, Hold)
    assert f" more on {TOLD}: what it wins may be chance, or too new" in held.reason


def test_of_too_few_requests_it_is_said_that_it_was_not_judged() -> None:
    plain, plan = judged(None), judged(Unseen("judged on its own traffic alone: why"))
    assert isinstance(plain, Plan)
    assert isinstance(plan, Plan)
    assert plan.reason == f"{plain.reason}; judged on its own traffic alone: why"
    assert plan.holdout is None


def test_a_map_that_breaks_a_rule_is_mended_whatever_traffic_says() -> None:
    twice = a_placement([[0, 1, 2, 3], [0, 1, 2, 2]])  # expert 3 of layer 1 is nowhere
    found = judged(Unseen(TOLD, a_trace(TURNED[0])), twice)
    assert isinstance(found, Plan)
    assert found.mends
    assert TOLD in found.reason


def test_a_plans_file_holds_nothing_of_a_request() -> None:
    """It is the same to the byte whatever the vocabulary ids, and in whatever order tokens came."""
    first = a_trace(SKEWED[0], token_ids=np.arange(70_000, 71_000))
    chance = np.random.default_rng(0)
    order = chance.permutation(first.tokens)
    mixed = replace(first, expert_ids=first.expert_ids[order], token_ids=order)
    texts = []
    for trace in (first, mixed):
        plan = judged(Unseen(TOLD, trace))
        assert isinstance(plan, Plan)
        texts.append(plan_text(plan))
    assert texts[0] == texts[1]
    assert "70000" not in texts[0]


def sample(world: World, rows: list[int]) -> None:
    """Two decoded requests come in now."""
    trace = a_trace(rows)
    first, second = np.split(trace.expert_ids.astype(np.uint16), [trace.seq_lens[0]])
    world.loop.traces.add(POOL, [Request("decode", 4, first), Request("decode", 4, second)])


SAMPLING: dict[str, Any] = {
    "mode": "automatic", "confirmations": 1, "window_s": 60.0, "traces": Traces(100, 900.0),
}  # fmt: skip


@in_virtual_time
async def test_a_pool_is_changed_if_its_plan_wins_on_older_requests_too() -> None:
    world = World(**SAMPLING)
    sample(world, SKEWED[0])
    await world.clock.sleep(61.0)
    world.count(SKEWED)
    await world.tick()
    outcome, reason = decided(world)
    assert (outcome, f"less on {TOLD}" in reason) == ("act", True)
    assert not alike(world.homes["e0"].placement, HOME)


@in_virtual_time
async def test_a_pool_is_left_alone_if_its_plan_loses_on_older_requests() -> None:
    world = World(**SAMPLING)
    sample(world, TURNED[0])
    await world.clock.sleep(61.0)
    world.count(SKEWED)
    await world.tick()
    outcome, reason = decided(world)
    assert (outcome, f"more on {TOLD}" in reason) == ("hold", True)
    assert alike(world.homes["e0"].placement, HOME)


@pytest.mark.parametrize("sampled", [False, True])
@in_virtual_time
async def test_requests_of_the_window_itself_are_no_judges(sampled: bool) -> None:
    world = World(**SAMPLING)
    world.count(SKEWED)
    if sampled:
        sample(world, TURNED[0])
    await world.tick()
    outcome, reason = decided(world)
    assert outcome == "act"
    assert (
        "judged on its own traffic alone: sampled requests from before its window have 0" in reason
    )


@in_virtual_time
async def test_a_pool_that_samples_nothing_is_judged_as_ever() -> None:
    world = World(**{**SAMPLING, "traces": Traces()})
    world.count(SKEWED)
    await world.tick()
    outcome, reason = decided(world)
    assert (outcome, "judged" in reason, "sampled" in reason) == ("act", False, False)
