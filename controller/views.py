"""What was seen of the engines of one pool and width, and what was decided."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.changes.arbiter import Arbiter
from controller.changes.plans import PlanState
from controller.config import Config, told_in_settings
from controller.fleet.pools import Group
from controller.ledger.ledger import Unreadable
from controller.policies.policy import Decision
from controller.ports import EngineLostError
from placer.arrays import FloatArray
from placer.cost import Score, score
from placer.placement import Placement
from placer.plan import Hold
from placer.problem import Problem

WEIGHTS = ("hold", "infeasible", "wait", "propose", "act")


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What was seen of a pool and decided. Gains are of the plan that is applied.

    decisions: of the policies that were asked, in turn; under "" if none was
    at_s: unix seconds
    load: [layers, experts] tokens, on what stood: ``placement``
    """

    decisions: Mapping[str, Decision]
    at_s: float
    load: FloatArray | None = None
    placement: Placement | None = None
    score: Score | None = None
    predicted_gain: float | None = None
    measured_gain: float | None = None

    @property
    def decision(self) -> Decision:
        """The weightiest, with what all say."""
        found = max(self.decisions.values(), key=lambda one: WEIGHTS.index(one.outcome))
        told = [f"{policy}: {one.reason}" for policy, one in self.decisions.items()]
        return replace(found, reason="; ".join(told)) if len(told) > 1 else found


async def problem_of(group: Group, config: Config, arbiter: Arbiter) -> Problem | Hold:
    """What an optimizer would be asked about these engines now; or why there is nothing to ask."""
    policy = config.of(group.pool)
    profile = group.profile(policy.phase, arbiter.ledger.clock.monotonic())
    tokens = profile.tokens if profile else 0
    if profile is None or tokens < policy.least_tokens:
        return Hold(
            f"{tokens:,.0f} tokens of {policy.phase} traffic in {policy.window_s:g} s < "
            f"{policy.least_tokens:,} (least_tokens): too few to tell"
        )
    try:
        current = await arbiter.stands(group)
    except EngineLostError as error:
        return Hold(f"{error}: it is not known what stands")
    with told_in_settings():
        return Problem(
            model=group.model,
            topology=policy.hardware(group.ranks),
            profile=profile,
            slots=group.slots,
            objective=policy.objective,
            current=current,
        )


def gains(problem: Problem, group: Group, arbiter: Arbiter) -> tuple[float | None, float | None]:
    """Of the plan that is applied: as predicted, and on today's traffic."""
    states, ranks = (PlanState.APPLIED,), group.ranks
    applied = arbiter.plans.in_state(group.pool, *states, width=ranks)
    if not applied or not applied[0].value.before:
        return None, None
    try:
        before = arbiter.ledger.placement(applied[0].value.before)
    except Unreadable:
        return None, None
    if before.shape != problem.start.shape or problem.start.lost:
        return None, None
    now = score(problem, problem.start).step_s / score(problem, before).step_s
    return applied[0].value.gain, 1 - now
