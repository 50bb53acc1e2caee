"""How many steps an engine takes a second: what turns seconds of a step into seconds of a horizon.

Of what is known of the traffic, the best counts:

    its workers measured whole steps:   busy share / the longer of a whole step and its MoE layers
    a recording that knows its seconds: tokens / seconds / tokens of a step, at most 1 / MoE layers
    neither:                            ``Objective.busy`` / MoE layers

The MoE layers are the model's of a step of ``tokens_per_gpu``. Where they are longer than what was
measured, real steps are smaller than that, and as many fewer are counted. So no plan is ever paid
for more seconds than engines work.
"""

from dataclasses import dataclass

from placer.problem import Problem


@dataclass(frozen=True, slots=True)
class Rate:
    """Steps a second, and from where that is known, in words."""

    per_s: float
    basis: str


def rate(problem: Problem, moe_s: float) -> Rate:
    """Of an engine that serves the problem's traffic. moe_s: seconds of a step's MoE layers"""
    profile, objective = problem.profile, problem.objective
    if profile.pace is not None and profile.pace.step_s is not None:
        busy = profile.pace.busy
        return Rate(
            busy / max(profile.pace.step_s, moe_s), f"measured, {busy * 100:.3g}% of the time busy"
        )
    if profile.window_s:
        step_tokens = objective.tokens_per_gpu * problem.topology.gpus
        per_s = profile.tokens / profile.window_s / step_tokens
        told = f"{profile.tokens:,.0f} tokens in {profile.window_s:.3g} s"
        if per_s * moe_s > 1:
            return Rate(1 / moe_s, f"{told} are more than the MoE layers let through: always busy")
        return Rate(per_s, f"{told}, {step_tokens:,} a step")
    return Rate(objective.busy / moe_s, f"taken to be busy {objective.busy * 100:.3g}% of the time")


def whole_step_s(problem: Problem, moe_s: float) -> float | None:
    """Seconds of a whole step, of which the MoE layers take ``moe_s``. None if nobody measured it,
    if it is shorter than that (then real steps are smaller than the model's), or if the model's
    sizes are not known."""
    pace = problem.profile.pace
    if pace is None or pace.step_s is None or pace.step_s < moe_s or not problem.model.sized:
        return None
    return pace.step_s
