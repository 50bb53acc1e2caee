"""A case of a what-if: planned on one part of the recording, judged on the other.

Without another part it is judged on the same, less what chance alone would seem to win (chance.py).
What it wins has two parts: what the slots win filled blind, with every expert taken to be chosen
alike, and what knowing the traffic wins over that.
"""

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from placer.chance import even, fitted, of_layers, quantile
from placer.cost import Score, moves, outlook, score
from placer.cost.memory import budget_bytes, gpu_bytes
from placer.errors import PlacementError, PlacerError
from placer.model import ModelShape
from placer.names import lookup
from placer.objective import Dispatch, Effort, Objective
from placer.optimizers import OPTIMIZERS
from placer.placement import Placement
from placer.plan import Infeasible
from placer.planner import solve
from placer.problem import Problem, check_model
from placer.profile import Profile
from placer.resize.price import Price, price
from placer.topology import Topology
from placer.trace import Trace

PARTS = 16  # of the held-out sequences: how much the gain differs between them says how sure it is
CHANCE = 0.001  # that a sweep recommends a plan, were there nothing in the traffic to know


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
    """What all cases share. No plan sees the ``holdout`` sequences; ``current`` is what runs, on
    ``runs_on``, if that is known.

    The best of so many ``cases`` is chosen: the more, the likelier that chance makes one shine.

    Raises PlacerError for what no case could do with.
    """

    model: ModelShape
    profile: Profile
    objective: Objective = Objective()
    holdout: Trace | None = None
    current: Placement | None = None
    runs_on: Topology | None = None
    optimizer: str = "joint"
    seed: int = 0
    effort: Effort = Effort()
    cases: int = 1

    def __post_init__(self) -> None:
        check_model(self.model, self.profile)
        lookup("optimizer", self.optimizer, OPTIMIZERS, PlacementError)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case comes to; ``problem`` says why there is nothing else.

    before, after: of what would run otherwise and of the plan, on the held-out sequences, or else
                   on the profile that the plan was made from. Otherwise: the current plan where it
                   fits, or else the linear placement without redundant slots
    step_s:        seconds of a step's MoE layers to come: of ``after``, and what it owes to chance
    gain:          share of the MoE layers' time in a step that the plan saves
    blind_gain:    what of it the slots win, filled blind to the traffic; none where what runs
                   otherwise is no slower
    noise:         what of the rest, the traffic gain, may be chance; 1 if nothing is known of that
    tokens_per_s:  tokens a second and GPU that the MoE layers let through
    kv_bytes:      memory of a GPU that the weights leave to the KV cache
    moved:         share of the slots that moves from the current plan, if it fits the case
    against:       what would run otherwise
    resize:        what it costs to come here from a current plan of another width
    """

    case: Case
    problem: str = ""
    before: Score | None = None
    after: Score | None = None
    step_s: float = 0.0
    gain: float = 0.0
    blind_gain: float = 0.0
    noise: float = 0.0
    tokens_per_s: float = 0.0
    kv_bytes: int = 0
    moved: float | None = None
    against: str = ""
    resize: Price | Infeasible | None = None

    @property
    def traffic_gain(self) -> float:
        """What knowing the traffic wins."""
        return self.gain - self.blind_gain


def evaluate(study: Study, case: Case) -> Outcome:
    """Plan one case and judge it on the held-out sequences, against what would run otherwise."""
    try:
        problem = _problem(study, case)
        solution = solve(problem, study.optimizer)
        if isinstance(solution, Infeasible):
            return Outcome(case, problem=solution.reason)
        otherwise = problem if problem.current else _problem(study, replace(case, redundant=0))
        trial = Trial(study, otherwise, problem, _blind(otherwise, problem), solution.placement)
        evidence = trial.on_profile() if study.holdout is None else trial.on(study.holdout)
    except PlacerError as error:
        return Outcome(case, problem=str(error))
    before, after = evidence.before, evidence.after
    step_s = after.step_s + evidence.chance_s
    weights = int(gpu_bytes(study.model, solution.placement).max())
    moved = problem.current and moves.cost(problem, problem.current, solution.placement)
    return Outcome(
        case=case,
        before=before,
        after=after,
        step_s=step_s,
        gain=1 - step_s / before.step_s,
        blind_gain=max(1 - evidence.blind.step_s / before.step_s, 0.0),
        noise=min(evidence.noise_s / before.step_s, 1.0),
        tokens_per_s=problem.objective.tokens_per_gpu / step_s,
        kv_bytes=budget_bytes(case.topology, problem.objective) - weights,
        moved=moved.moved_share if moved else None,
        against="the current plan" if otherwise.current else "the linear placement",
        resize=_resize(study, problem, solution.placement),
    )


def _resize(study: Study, problem: Problem, planned: Placement) -> Price | Infeasible | None:
    current = study.current
    if current is None or current.gpus == problem.topology.gpus:
        return None
    return price(problem, current, study.runs_on, planned, study.optimizer)


@dataclass(frozen=True, slots=True)
class Evidence:
    """
    before, blind, after: what would run otherwise, the slots filled blind, and the plan
    chance_s: seconds a step that the plan will take longer, having fitted chance
    noise_s:  what of the seconds between the plan and the better of the others may be chance
    """

    before: Score
    blind: Score
    after: Score
    chance_s: float
    noise_s: float


@dataclass(frozen=True, slots=True)
class Trial:
    """A plan, ``after``, of ``problem``; what would run ``otherwise``, and the slots filled
    ``blind``."""

    study: Study
    otherwise: Problem
    problem: Problem
    blind: Placement
    after: Placement

    def on(self, holdout: Trace) -> Evidence:
        """On sequences that the plan did not see: they differ by chance, it has fitted none."""
        before, blind, after = self._scores(holdout)
        parts = min(PARTS, holdout.sequences)
        if parts < 2:
            return Evidence(before, blind, after, 0.0, before.step_s)
        place = np.arange(holdout.sequences) % parts
        saved = []
        for part in range(parts):
            one, other, plan = self._scores(holdout.select(place == part))
            saved.append((one if before.step_s <= blind.step_s else other).step_s - plan.step_s)
        error = float(np.std(saved, ddof=1)) / parts**0.5
        return Evidence(before, blind, after, 0.0, quantile(parts - 1, self._chance) * error)

    def on_profile(self) -> Evidence:
        """On the recording that the plan was made from."""
        before, blind, after = self._scores(None)
        reference = self.otherwise.start if before.step_s <= blind.step_s else self.blind
        luck = fitted(self.problem, self.study.optimizer, reference)
        experts = outlook.experts_gain(self.problem, reference, self.after)
        noise_s = max(
            quantile(luck.freedom, self._chance) * luck.error_s,
            NormalDist().inv_cdf(1 - self._chance) * experts.noise_s / outlook.SIGMAS,
        )
        won_s = min(before.step_s, blind.step_s) - after.step_s
        return Evidence(before, blind, after, min(luck.seconds, max(won_s, 0.0)), noise_s)

    @property
    def _chance(self) -> float:
        return CHANCE / self.study.cases

    def _scores(self, trace: Trace | None) -> tuple[Score, Score, Score]:
        before = score(self.otherwise, self.otherwise.start, trace)
        same = self.blind is self.otherwise.start
        blind = before if same else score(self.problem, self.blind, trace)
        return before, blind, score(self.problem, self.after, trace)


def _blind(otherwise: Problem, problem: Problem) -> Placement:
    """The problem's slots filled for a router that is known to choose every expert alike; which of
    them stand where, and have replicas, is drawn for each layer."""
    if problem.slots == problem.model.experts:
        return problem.linear
    objective = replace(problem.objective, guard=0.0, uneven=False)
    alike = replace(of_layers(problem, even(problem.profile)), objective=objective, current=None)
    solution = solve(alike, "joint")
    if isinstance(solution, Infeasible):
        raise PlacementError(solution.reason)
    lots, layers = np.random.default_rng(problem.seed), problem.model.layers
    ids = np.arange(problem.model.experts).reshape(problem.model.groups, -1)
    drawn = [lots.permuted(lots.permutation(ids), axis=1).ravel() for _ in range(layers)]
    return problem.placement(np.stack(drawn)[:, solution.placement.physical_to_logical[0]])


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
