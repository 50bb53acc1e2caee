"""What a change will win in the traffic to come, and how sure that is.

A profile is a sample. A plan made from it fits its noise too: on the next recording it will be off
by that noise and by the next one's. The plan that runs was made from other traffic, so how unevenly
it spreads this recording is already an honest measurement. Per layer, with z how far the slowest of
G GPUs lies above their mean:

    before: mean + z * rms(deviation)            after: mean + z * rms(deviation, noise, noise)

The noise of a GPU's seconds comes from the profile's covariance (``Profile.noise``); the standard
error of a layer's rms is noise / sqrt(G), that of the sum over layers follows. What is unknown of
the traffic (``Profile.unknown``) is in every rms, since no plan was made from it.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from placer.arrays import FloatArray
from placer.cost import compute
from placer.cost.sharing import shares
from placer.placement import Placement
from placer.problem import Problem

SIGMAS = 2.0  # a gain below two standard errors is taken for noise


def slowest(gpus: int) -> float:
    """Standard deviations by which the slowest of so many GPUs lies above their mean.

    Blom's approximation for normal deviations; of any numbers, the largest is one above or more.
    """
    return max(NormalDist().inv_cdf((gpus - 0.375) / (gpus + 0.25)), 1.0)


@dataclass(frozen=True, slots=True)
class Gain:
    """Seconds that a step's experts will take less, and what of that may be noise."""

    seconds: float
    noise_s: float


def experts_gain(problem: Problem, before: Placement, after: Placement) -> Gain:
    """What ``after``, made from the problem's profile, wins over ``before``, which was not."""
    now, then = _of(problem, before), _of(problem, after)
    z = slowest(problem.topology.gpus)
    measured = now.mean + z * np.sqrt(now.deviation + now.unknown)
    to_come = then.mean + z * np.sqrt(then.deviation + 2 * then.noise + then.unknown)
    error = z * np.sqrt((now.noise / problem.topology.gpus).sum())
    return Gain(float((measured - to_come).sum()), float(SIGMAS * error))


def uncertain_seconds(problem: Problem, placement: Placement) -> FloatArray:
    """[layers] seconds of the slowest GPU's experts in traffic of which a part is not known."""
    found = _of(problem, placement)
    z = slowest(problem.topology.gpus)
    seconds: FloatArray = found.mean + z * np.sqrt(found.deviation + found.unknown)
    return seconds


@dataclass(frozen=True, slots=True, eq=False)
class _Spread:
    """[layers] mean seconds of the GPUs, mean squared deviation from it, mean variance by noise and
    by what is not known."""

    mean: FloatArray
    deviation: FloatArray
    noise: FloatArray
    unknown: FloatArray


def _of(problem: Problem, placement: Placement) -> _Spread:
    profile, replicas = problem.profile, np.maximum(placement.replicas, 1)
    load = compute.step_load(problem)
    served = (load[:, :, None] * shares(profile, placement, problem.objective.dispatch)).sum(axis=1)
    arithmetic, reading = compute.by_gpu(problem, placement, served, load)
    by_gpu = np.maximum(arithmetic, reading)
    content, layer = placement.content(placement.gpus), np.arange(placement.layers)[:, None, None]
    by_arithmetic, by_reading = (
        (slope / replicas)[layer, content.experts] for slope in compute.slopes(problem)
    )
    binds = (arithmetic >= reading)[:, :, None]
    weight = np.where(content.used, np.where(binds, by_arithmetic, by_reading), 0.0)
    noise = profile.noise.of(content.experts, weight).mean(axis=1)
    unknown = np.zeros_like(noise)
    if profile.unknown is not None:
        unknown = profile.unknown.of(content.experts, weight).mean(axis=1)
    return _Spread(by_gpu.mean(axis=1), by_gpu.var(axis=1), noise, unknown)
