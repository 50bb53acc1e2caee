"""What was seen of the engines of one pool and width, and what was decided."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.policies.policy import Decision
from placer.arrays import FloatArray
from placer.cost import Score
from placer.placement import Placement

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
