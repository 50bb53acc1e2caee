"""What if: the same traffic on other widths, redundancies, topologies and dispatch modes.

Each case is planned on one part of the recording and judged on the other. Then come three answers:
the knee, where further redundant slots stop paying; the best width; and whether to change anything.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from placer.cost import Score, moves, outlook, score
from placer.cost.memory import budget_bytes, gpu_bytes
from placer.errors import PlacerError
from placer.model import ModelShape
from placer.objective import Dispatch, Effort, Objective
from placer.placement import Placement
from placer.plan import Infeasible
from placer.planner import solve
from placer.problem import Problem
from placer.profile import Profile
from placer.topology import Topology
from placer.trace import Trace

PARTS = 8  # of the held-out sequences: how much the gain differs between them says how sure it is
STRAIGHT = 0.1  # a plot of step time that bends by less of its fall has no knee
WORTH = 0.01  # a share of the MoE layers' time below which nobody should bother
Verdict = Literal["recommended", "not_recommended", "insufficient_evidence"]


@dataclass(frozen=True, slots=True)
class Case:
    """One point of the sweep."""

    topology: Topology
    redundant: int
    dispatch: Dispatch

    @property
    def label(self) -> str:
        return f"{self.topology.title}, {self.redundant} redundant, {self.dispatch}"


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """What all cases share. No plan sees the ``holdout`` sequences; ``current`` is what runs."""

    model: ModelShape
    profile: Profile
    objective: Objective = Objective()
    holdout: Trace | None = None
    current: Placement | None = None
    optimizer: str = "joint"
    seed: int = 0
    effort: Effort = Effort()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case comes to; ``problem`` says why there is nothing else.

    before, after: of what would run otherwise and of the plan, on the held-out sequences, or else
                   as the profile lets expect. Otherwise: the current plan where it fits, or else
                   the linear placement without redundant slots
    gain, noise:   share of the MoE layers' time in a step that the plan saves, and what of it may
                   be chance
    tokens_per_s:  tokens a second and GPU that the MoE layers let through
    kv_bytes:      memory of a GPU that the weights leave to the KV cache
    moved:         share of the slots that moves from the current plan, if it fits the case
    against:       what would run otherwise
    """

    case: Case
    problem: str = ""
    before: Score | None = None
    after: Score | None = None
    gain: float = 0.0
    noise: float = 0.0
    tokens_per_s: float = 0.0
    kv_bytes: int = 0
    moved: float | None = None
    against: str = ""


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


def evaluate(study: Study, case: Case) -> Outcome:
    """Plan one case and judge it on the held-out sequences, against what would run otherwise."""
    try:
        problem = _problem(study, case)
        solution = solve(problem, study.optimizer)
    except PlacerError as error:
        return Outcome(case, problem=str(error))
    if isinstance(solution, Infeasible):
        return Outcome(case, problem=solution.reason)
    placement = solution.placement
    otherwise = problem if problem.current else _problem(study, replace(case, redundant=0))
    gain, noise = _gain(otherwise, problem, placement, study.holdout)
    after = score(problem, placement, study.holdout)
    weights = int(gpu_bytes(study.model, placement).max())
    moved = moves.cost(problem, problem.current, placement) if problem.current else None
    return Outcome(
        case=case,
        before=score(otherwise, otherwise.start, study.holdout),
        after=after,
        gain=gain,
        noise=noise,
        tokens_per_s=problem.objective.tokens_per_gpu / after.step_s,
        kv_bytes=budget_bytes(case.topology, problem.objective) - weights,
        moved=moved.moved_share if moved else None,
        against="the current plan" if otherwise.current else "the linear placement",
    )


def _problem(study: Study, case: Case) -> Problem:
    """The case as a problem, from the current plan if that has its shape."""
    gpus, experts = case.topology.gpus, study.model.experts
    problem = Problem(
        model=study.model,
        topology=case.topology,
        profile=study.profile,
        # Without redundancy, experts that do not divide by the GPUs need a few slots all the same.
        slots=experts + (case.redundant or -experts % gpus),
        objective=replace(study.objective, dispatch=case.dispatch),
        seed=study.seed,
        effort=study.effort,
    )
    if study.current is not None and problem.may_follow(study.current):
        return replace(problem, current=study.current)
    return problem


def advise(study: Study, cases: Sequence[Case], over: Map) -> Advice:
    """Evaluate all cases with ``over``, a map that may work in parallel, and draw conclusions."""
    outcomes = tuple(over(Evaluate(study), cases))
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
    steps = np.array([outcome.after.step_s for outcome in ordered if outcome.after])
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
    """Whether to use the best plan, and why, with both numbers."""
    if best is None:
        return "not_recommended", "no case keeps its limits"
    basis = "held-out sequences" if holdout is not None else "the profile alone, without a hold-out"
    less = "less" if best.gain >= 0 else "more"
    reason = (
        f"on {best.case.label}, the MoE layers of a step take {abs(best.gain):.1%} {less} time "
        f"than with {best.against} (noise {best.noise:.1%}), judged on {basis}"
    )
    if best.gain - best.noise > WORTH:
        return "recommended", reason
    if best.gain + best.noise < WORTH:
        return "not_recommended", f"{reason}: not worth a change"
    return "insufficient_evidence", f"{reason}: a longer recording would tell"


def _gain(
    otherwise: Problem, problem: Problem, after: Placement, holdout: Trace | None
) -> tuple[float, float]:
    """Share of the MoE layers' time saved over ``otherwise.start``, and two standard errors."""
    if holdout is None or holdout.sequences < 2:
        before = score(otherwise, otherwise.start)
        noise_s = outlook.experts_gain(problem, otherwise.start, after).noise_s
        return 1 - score(problem, after).step_s / before.step_s, noise_s / before.step_s
    parts = min(PARTS, holdout.sequences)
    gains = []
    for part in range(parts):
        some = holdout.select(np.arange(holdout.sequences) % parts == part)
        before = score(otherwise, otherwise.start, some)
        gains.append(1 - score(problem, after, some).step_s / before.step_s)
    error = float(np.std(gains, ddof=1)) / parts**0.5
    return float(np.mean(gains)), outlook.SIGMAS * error
