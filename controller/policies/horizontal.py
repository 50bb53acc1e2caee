"""The form of Kubernetes' HorizontalPodAutoscaler, as KEDA feeds it: one load, one target.

    ranks = ceil(mean of (running + waiting) in the window / ``requests``)

in engines as they stand, whole ones; nothing changes while load over target is within 10% of 1 (its
default tolerance). Source: kubernetes.io, "Horizontal Pod Autoscaling", algorithm details, with an
AverageValue target. Its sync period of 15 s is ``every_s``, and its window for getting smaller
``stabilisation_s`` (300 s there).

It loses where requests differ in size, since it counts them, and where a burst is over before the
mean has heard of it.
"""

from math import ceil

from controller.policies.policy import Answer, Scaling, Wish
from controller.size_settings import Autoscale

TOLERANCE = 0.1


def horizontal(scaling: Scaling, settings: Autoscale, answer: Answer) -> Wish:
    """As many ranks as give each its target."""
    present = scaling.signals.mean_present(settings.window_s)
    each, gpus = present / scaling.size.gpus, scaling.size.gpus
    told = f"{present:.1f} requests, {each:.2f} a rank for {settings.requests:g}"
    if abs(each / settings.requests - 1) <= TOLERANCE:
        return Wish(gpus, f"{told}, within {TOLERANCE:.0%}")
    return Wish(max(ceil(present / settings.requests), 1), told)
