"""What the traffic to come wins by another placement, in seconds that engines really work."""

from dataclasses import dataclass

from placer.cost import Score, outlook, steps
from placer.placement import Placement
from placer.problem import Problem


@dataclass(frozen=True, slots=True)
class Payoff:
    """
    gain, noise: shares of the MoE layers' time in a step
    seconds:     won in the steps of the horizon
    told:        the seconds and what they come from, for people
    """

    gain: float
    noise: float
    seconds: float
    told: str


def payoff_of(problem: Problem, after: Placement, old: Score, new: Score) -> Payoff:
    """Of ``after``, made from the problem's profile, over the placement that runs.

    old, new: the scores of the two
    """
    experts = outlook.experts_gain(problem, problem.start, after)
    links_s = old.dispatch_s + old.combine_s - new.dispatch_s - new.combine_s
    saved_s = experts.seconds + links_s
    rate, horizon_s = steps.rate(problem, old.step_s), problem.objective.horizon_s
    seconds = saved_s * rate.per_s * horizon_s
    told = (
        f"wins {seconds:.3g} s in {horizon_s:g} s: {saved_s * 1e3:.3g} ms a step, "
        f"{rate.per_s:.3g} steps a second ({rate.basis})"
    )
    return Payoff(saved_s / old.step_s, experts.noise_s / old.step_s, seconds, told)
