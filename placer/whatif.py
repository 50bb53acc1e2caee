"""What if: the same traffic on other widths, redundancies, topologies and dispatch modes.

Each case is tried (trials.py). Then come three answers: the knee, where further redundant slots
stop paying; the best width; and whether knowing the traffic is worth a change.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from placer.trace import Trace
from placer.trials import Case, Outcome, Study, evaluate

STRAIGHT = 0.1  # a plot of step time that bends by less of its fall has no knee
WORTH = 0.01  # a share of the MoE layers' time below which nobody should bother
Verdict = Literal["recommended", "not_recommended", "insufficient_evidence"]


@dataclass(frozen=True, slots=True)
class Advice:
    """``knees``: of each width, the outcome after which more redundancy does not pay; ``best`` of
    them lets most tokens through a GPU."""

    outcomes: tuple[Outcome, ...]
    knees: tuple[Outcome, ...]
    best: Outcome | None
    verdict: Verdict
    reason: str


Map = Callable[[Callable[[Case], Outcome], Iterable[Case]], Iterator[Outcome]]


def advise(study: Study, cases: Sequence[Case], over: Map) -> Advice:
    """Evaluate all cases with ``over``, a map that may work in parallel, and draw conclusions."""
    outcomes = tuple(over(Evaluate(replace(study, cases=max(len(cases), 1))), cases))
    found = [outcome for outcome in outcomes if not outcome.problem]
    widths = dict.fromkeys((outcome.case.topology, outcome.case.dispatch) for outcome in found)
    knees = tuple(
        knee([o for o in found if (o.case.topology, o.case.dispatch) == width]) for width in widths
    )
    best = max(knees, key=lambda outcome: outcome.tokens_per_s, default=None)
    verdict, reason = judge(best, study.holdout)
    return Advice(outcomes, knees, best, verdict, reason)


@dataclass(frozen=True, slots=True)
class Evaluate:
    """``evaluate`` of one study, as something that can be sent to another process."""

    study: Study

    def __call__(self, case: Case) -> Outcome:
        return evaluate(self.study, case)


def knee(outcomes: Sequence[Outcome]) -> Outcome:
    """Of outcomes that differ in redundancy, the one after which more does not pay.

    The point furthest below the line from the first to the last in a plot of step time over
    redundancy (Satopaa et al., Kneedle, 2011). Where the plot is nearly straight or bends the other
    way, more pays to the end: the fastest. If redundancy wins nothing to speak of: the first.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.case.redundant)
    steps = np.array([outcome.step_s for outcome in ordered])
    if steps.min() > steps[0] * (1 - WORTH):
        return ordered[0]
    if len(ordered) < 3 or steps[-1] >= steps[0]:
        return ordered[int(steps.argmin())]
    slots = np.array([outcome.case.redundant for outcome in ordered], dtype=np.float64)
    line = np.interp(slots, slots[[0, -1]], steps[[0, -1]])
    bend = line - steps
    if bend.max() < STRAIGHT * (steps[0] - steps[-1]):
        return ordered[int(steps.argmin())]
    return ordered[int(bend.argmax())]


def judge(best: Outcome | None, holdout: Trace | None) -> tuple[Verdict, str]:
    """Whether knowing the traffic is worth the change to the best plan, and why, in numbers."""
    if best is None:
        return "not_recommended", "no case keeps its limits"
    basis = "held-out sequences" if holdout is not None else "the profile alone, without a hold-out"
    less = "less" if best.gain >= 0 else "more"
    blind = (
        f": the slots alone, filled blind to the traffic, win {best.blind_gain:.1%}, and knowing "
        f"it {best.traffic_gain:.1%}"
        if best.blind_gain
        else ""
    )
    reason = (
        f"on {best.case.label}, the MoE layers of a step take {abs(best.gain):.1%} {less} time "
        f"than with {best.against}{blind} (noise {best.noise:.1%}), judged on {basis}"
    )
    if best.traffic_gain - best.noise > WORTH:
        return "recommended", reason
    if best.traffic_gain + best.noise >= WORTH:
        return "insufficient_evidence", f"{reason}: a longer recording would tell"
    if best.blind_gain > WORTH:
        return "not_recommended", f"{reason}: the slots may be worth it, knowing the traffic is not"
    return "not_recommended", f"{reason}: not worth a change"
