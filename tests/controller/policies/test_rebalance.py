from dataclasses import replace

import pytest

from controller.config import Hours, Mode, PoolPolicy
from controller.policies.policy import Decision, Past, Seen
from controller.policies.rebalance import rebalance
from placer.plan import Hold, Infeasible, Plan
from tests.controller.tiny_pool import GOAL, a_policy

PLAN = Plan(GOAL, reason="the MoE layers of a step take 37.5% less time")
POLICY = a_policy(mode="automatic", confirmations=2, cooldown_s=300.0)
NOON_S = 12 * 3600.0
NIGHT = (Hours(22 * 60, 6 * 60),)


@pytest.mark.parametrize(
    ("past", "policy", "outcome", "reason"),
    [
        (Past(0), POLICY, "wait", "1 of 2 decisions in a row"),
        (Past(1), POLICY, "act", "the MoE layers of a step take 37.5% less time"),
        (Past(7), POLICY, "act", "the MoE layers of a step take"),
        (Past(0), replace(POLICY, confirmations=1), "act", "the MoE layers of a step take"),
        (Past(1, 299), POLICY, "wait", "1 s of cooldown_s are left"),
        (Past(1, 300), POLICY, "act", "the MoE layers of a step take"),
        (Past(1, 300, failures=1), POLICY, "wait", "1 in a row failed, 300 s of"),
        (Past(1, 1200, failures=2), POLICY, "act", "the MoE layers of a step take"),
        (Past(1, 19_199, failures=99), POLICY, "wait", "99 in a row failed, 1 s of"),
        (Past(1), replace(POLICY, mode="advisory"), "propose", "waits for approval"),
        (Past(1), replace(POLICY, mode="advisory", hours=NIGHT), "propose", "waits for approval"),
        (Past(0), replace(POLICY, mode="advisory"), "wait", "1 of 2"),
        (Past(1), replace(POLICY, hours=NIGHT), "wait", "outside the hours of change, 22:00-06:00"),
        (Past(1), replace(POLICY, bytes_per_minute=0), "wait", "bytes_per_minute is 0: frozen"),
        (Past(1), replace(POLICY, bytes_per_minute=1), "act", "the MoE layers of a step take"),
    ],
)
def test_a_plan_that_pays(past: Past, policy: PoolPolicy, outcome: str, reason: str) -> None:
    decision = rebalance(Seen(PLAN, past, policy, NOON_S))
    assert decision.outcome == outcome
    assert decision.reason.startswith("the MoE layers of a step take 37.5% less time")
    assert reason in decision.reason
    assert decision.streak == past.streak + 1
    assert (decision.plan is PLAN) == (outcome in ("act", "propose"))


@pytest.mark.parametrize("mode", ["advisory", "automatic"])
def test_no_is_no_whatever_was_before(mode: Mode) -> None:
    policy = replace(POLICY, mode=mode)
    held = rebalance(Seen(Hold("gain 0.10% < noise 0.30%"), Past(9), policy, NOON_S))
    assert held == Decision("hold", "gain 0.10% < noise 0.30%", streak=0)
    clash = rebalance(Seen(Infeasible("5 slots clash with 2 GPUs"), Past(9), policy, NOON_S))
    assert clash == Decision("infeasible", "5 slots clash with 2 GPUs", streak=0)
