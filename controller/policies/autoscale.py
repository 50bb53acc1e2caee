"""Whether to change a pool's size. Every answer says why, with numbers.

A rule of the table says how many GPUs it would have by the load of now; this says what comes of it:

    limits         ``least`` to ``most`` ranks an engine in steps of ``step``, as far as hardware
                   and memory allow, ``max_gpus`` of all
    ability        another width, or more replicas, only if engines registered that they change it
                   live; else, or beyond ``most``, one more or one fewer engine
    stabilisation  smaller only down to the largest wish of the last ``stabilisation_s``
    cool-down      nothing within ``cooldown_s`` of the last change of size, twice as long for each
                   in a row that was refused or failed
    mode, hours    advisory proposes; automatic acts when hours and budgets allow
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from controller.config import PoolPolicy
from controller.policies.horizontal import horizontal
from controller.policies.policy import Decision, Rule, Scaling, Seen, Size, Wish
from controller.policies.quantile import by_quantile
from controller.policies.threshold import threshold
from controller.size_settings import Autoscale
from placer.plan import Plan

DOUBLINGS = 6  # of the cool-down, at most
RULES: Mapping[str, Rule] = {
    "quantile": by_quantile,
    "threshold": threshold,
    "horizontal": horizontal,
}


def autoscale(seen: Seen) -> Decision | None:
    """Another size, or as it is. None if it is off, or nothing is known of the load."""
    settings, scaling = seen.settings.autoscale, seen.scaling
    if settings is None or scaling is None:
        return None
    wish, size = RULES[settings.policy](scaling, settings, seen.answer), scaling.size
    plan = seen.answer if wish.instead == "replan" and isinstance(seen.answer, Plan) else None
    target = size
    if wish.instead == "redundancy":
        target = replace(size, slots=size.slots + size.ranks)
    elif plan is None:
        target = fitting(_stable(wish, scaling, settings), scaling, settings)
    if target == size and plan is None:
        return Decision("hold", f"{size}: {_held(wish, size, settings)}", wish=wish.gpus)
    reason = f"{size} -> {target}: {wish.reason}" if plan is None else wish.reason
    outcome, why = _when(seen.settings, settings, scaling, seen.now)
    begun = outcome != "wait"
    return Decision(
        outcome,
        f"{reason}: {why}" if why else reason,
        streak=1,
        plan=plan if begun else None,
        size=target if begun and plan is None else None,
        wish=wish.gpus,
    )


def fitting(wanted: int, scaling: Scaling, settings: Autoscale) -> Size:
    """Of the sizes that can be had, the smallest with so many GPUs, or else the largest. Another
    number of engines, which others start and end, only where widths end or cannot change."""
    size = scaling.size
    limit = settings.most * size.engines if settings.max_gpus is None else settings.max_gpus
    widths = [size.ranks]
    if "width" in scaling.live:
        widths += settings.widths if scaling.widths is None else scaling.widths
    own = [replace(size, ranks=ranks) for ranks in dict.fromkeys(widths)]
    engines = (max(size.engines - 1, 1), size.engines + 1)
    others = [replace(size, engines=number) for number in engines]
    by_gpus = sorted((*own, *others), key=lambda one: one.gpus)  # of equals those of its own first
    allowed = [one for one in by_gpus if one.gpus <= limit] or by_gpus[:1]
    most = max(allowed, key=lambda one: one.gpus)
    enough = [one for one in allowed if one.gpus >= wanted] or [most]
    if wanted > min(widths) * size.engines:
        return next((one for one in enough if one.engines == size.engines), enough[0])
    return enough[0]


def _stable(wish: Wish, scaling: Scaling, settings: Autoscale) -> int:
    """More at once; fewer only down to what was wanted most lately."""
    lately = [gpus for ago_s, gpus in scaling.wishes if ago_s <= settings.stabilisation_s]
    return max(wish.gpus, min(max(lately, default=wish.gpus), scaling.size.gpus))


def _when(
    policy: PoolPolicy, settings: Autoscale, scaling: Scaling, now: float
) -> tuple[Literal["propose", "wait", "act"], str]:
    """Whether a change may begin, or why not yet."""
    rested_s, failures = scaling.rested_s, min(scaling.failures, DOUBLINGS)
    cooldown_s = settings.cooldown_s * 2**failures
    if rested_s is not None and (left_s := cooldown_s - rested_s) > 0:
        failed = f" and {scaling.failures} in a row failed" if failures else ""
        why = f"the last change of size is too fresh{failed}, {left_s:.1f} s of cooldown_s are left"
        return "wait", why
    if policy.mode == "advisory":
        return "propose", "advisory, waits for approval"
    if why := policy.closed(now):
        return "wait", why
    return "act", ""


def _held(wish: Wish, size: Size, settings: Autoscale) -> str:
    if wish.gpus < size.gpus:
        why = f"more was wanted in {settings.stabilisation_s:g} s, or it is the least"
        return f"{wish.gpus} would do now, but {why}: {wish.reason}"
    if wish.gpus > size.gpus:
        return f"{wish.gpus} would be wanted, and there are no more: {wish.reason}"
    return wish.reason
