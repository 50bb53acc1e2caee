"""Policies are asked in turn, beside a second one of this file's."""

from collections.abc import Callable

import pytest

from controller.policies import POLICIES
from controller.policies.policy import Decision, Policy, Seen
from placer.plan import Plan
from tests.controller.tiny_pool import (
    GOAL,
    HOME,
    OTHER,
    POOL,
    SKEWED,
    TICK_S,
    World,
    decided,
    in_virtual_time,
)

EVEN = [[250] * 4] * 2
Add = Callable[[Policy], list[Seen]]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Adds a second policy; what it saw is listed."""

    def adding(policy: Policy) -> list[Seen]:
        asked: list[Seen] = []

        def second(seen: Seen) -> Decision | None:
            asked.append(seen)
            return policy(seen)

        monkeypatch.setitem(POLICIES, "second", second)
        return asked

    return adding


def idle(seen: Seen) -> Decision:
    return Decision("hold", "nobody waits")


def eager(seen: Seen) -> Decision:
    return Decision("act", "it is Sunday", seen.past.streak + 1, Plan(OTHER, "it is Sunday"))


def reasons(world: World) -> list[tuple[str, str]]:
    """Policy and outcome of what was written down, oldest first."""
    found = reversed(world.disk.newest("decision"))
    return [(one.value.policy, one.value.outcome) for one in found]


@in_virtual_time
async def test_if_nobody_wants_anything_all_say_why(add: Add) -> None:
    asked, world = add(idle), World(confirmations=1)
    world.count(EVEN)
    await world.tick()
    outcome, reason = decided(world)
    assert outcome == "hold"
    assert reason.startswith("rebalance: gain ")
    assert reason.endswith("; second: nobody waits")
    assert (len(asked), reasons(world)) == (1, [("rebalance", "hold"), ("second", "hold")])


@in_virtual_time
async def test_the_first_that_wants_a_change_has_it_and_no_other_is_asked(add: Add) -> None:
    asked, world = add(eager), World(mode="automatic", confirmations=1)
    world.count(SKEWED)
    await world.tick()
    assert (asked, reasons(world)) == ([], [("rebalance", "act")])
    assert list(world.states()) == ["plan-1"]
    assert not world.stand_at(OTHER)


@in_virtual_time
async def test_the_next_has_its_turn_when_the_first_does_not_want_one(add: Add) -> None:
    """Also without traffic, of which the first has to be sure."""
    asked, world = add(eager), World()
    await world.tick()
    assert len(asked) == 1
    outcome, reason = decided(world)
    assert outcome == "act"
    assert reason.startswith("rebalance: 0 tokens of mixed traffic")
    assert reason.endswith("; second: plan-1: it is Sunday")
    assert (world.stand_at(OTHER), world.states()) == (True, {"plan-1": "applied"})


@in_virtual_time
async def test_while_one_change_is_at_work_no_other_begins(add: Add) -> None:
    asked, world = add(eager), World(bytes_per_minute=1)
    for _ in range(2):
        await world.loop.tick()
    assert decided(world)[1].startswith("op-1 is at work: ")
    assert (len(asked), [one.id for one in world.disk.newest("operation")]) == (1, ["op-1"])
    await world.arbiter.settle()
    assert reasons(world)[-1] == ("", "wait")


@in_virtual_time
async def test_a_plan_that_waits_is_not_pushed_aside_by_another_policys(add: Add) -> None:
    asked, world = add(eager), World()
    world.arbiter.propose(POOL, Plan(GOAL), "", "ann knows better")
    await world.tick(TICK_S)
    assert decided(world)[1].endswith("second: plan-1 waits for approval: ann knows better")
    assert (len(asked), world.states(), world.stand_at(HOME)) == (
        1, {"plan-1": "proposed"}, True,
    )  # fmt: skip


@in_virtual_time
async def test_each_policy_counts_its_own_wishes(add: Add) -> None:
    asked, world = add(eager), World(confirmations=9)
    for _ in range(3):
        world.count(SKEWED)
        await world.tick(TICK_S)
    assert [seen.past.streak for seen in asked] == [0, 0, 0]  # each of its changes begins anew
    assert len(asked) == 3
