"""How many ranks meet the objectives, by what ranks compute at full speed.

    work    = the ``quantile`` of arrivals in spans of ``ttft_s`` in the last ``window_s``, in
              prompt tokens a second: requests times the mean length of prompts
    backlog = waiting requests times that length, tokens
    left_s  = half of ttft_s - resize_s - every_s, at least a quarter of ttft_s
    ranks   = (work / load + backlog / left_s) / full_rate

An objective of TTFT is kept if what comes in its span can be computed in it; what waits already has
half of what is left of it when the change is done, since it has waited already, and to hurry costs
no more: a backlog is so many rank-seconds on whatever ranks. ``full_rate`` is measured
(signals.py says how): so decoding, routing and its imbalance are in it.

For the others of a request's tokens: below ``attainment`` of TPOT in the last seconds, the pool
grows by a ``step``.

Better than ranks is what costs none. If the optimizer's plan takes a share g off a whole step, and
ranks * (1 - g) do, experts are moved instead. If ranks * balance do, and engines can change it
live, they get more replicas: that the step follows balance in full is the best these can do.

It loses where load comes in one burst that needs more than ``most``, or is over before the change;
where prompts get longer at once, since the mean of lengths is of those that finished; and against
a rule that knows the hour of the day.
"""

from math import ceil
from typing import Literal

from controller.policies.policy import Answer, Scaling, Wish
from controller.size_settings import Autoscale
from placer.plan import Plan

LEFT = 0.25  # of the objective, at least, to compute a backlog in


def by_quantile(scaling: Scaling, settings: Autoscale, answer: Answer) -> Wish:
    """The fewest ranks, as far as the cost model goes."""
    signals, gpus = scaling.signals, scaling.size.gpus
    waiting = signals.now.sums.waiting
    if not scaling.full_rate or not signals.prompt_length:
        return Wish(gpus, "no request has finished yet: it is not known what ranks compute")
    length, rate = signals.prompt_length, scaling.full_rate
    spans = sorted(signals.arrivals(settings.window_s, settings.ttft_s))
    work = quantile(spans, settings.quantile) * length
    ttft_s = settings.ttft_s
    left_s = max((ttft_s - scaling.resize_s - settings.every_s) / 2, LEFT * ttft_s)
    tokens = work / settings.load + waiting * length / left_s
    told = (
        f"{work:,.0f} prompt tokens/s at a load of {settings.load:g} and {waiting:g} requests of "
        f"{length:,.0f} to compute in {left_s:.2g} s, {rate:,.0f} tokens/s a rank"
    )
    wanted = ceil(tokens / rate)
    if wanted > gpus and (free := _free(scaling, answer, tokens / rate)):
        return Wish(gpus, f"{told}: {free[1]}", instead=free[0])
    gaps = signals.gaps(settings.ttft_s)
    if gaps.total and (kept := gaps.within(settings.tpot_s)) < settings.attainment:
        wanted = max(wanted, gpus + settings.step)
        told = f"{told}; {kept:.1%} of tokens within {settings.tpot_s:g} s"
    return Wish(max(wanted, 1), told)


def _free(
    scaling: Scaling, answer: Answer, wanted: float
) -> tuple[Literal["replan", "redundancy"], str] | None:
    """What makes ranks fast enough without another one."""
    gpus = scaling.size.gpus
    gain = (answer.whole_gain or 0.0) if isinstance(answer, Plan) else 0.0
    if wanted * (1 - gain) <= gpus:
        return "replan", f"a plan that takes {gain:.1%} off a step does"
    if "redundancy" in scaling.live and wanted * scaling.balance <= gpus:
        return "redundancy", f"ranks are loaded {scaling.balance:.2f} to 1, and replicas may do"
    return None


def quantile(values: list[float], share: float) -> float:
    """Of sorted values, the smallest that so many are at most; 0 of none."""
    return values[max(ceil(share * len(values)) - 1, 0)] if values else 0.0
