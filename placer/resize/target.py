"""Which placement to go to: the one whose moves and steps to come take the least time together.

The candidates, of which all but the last two keep as much as fits on every device:

    bare:  one copy of what would be lost; slots that this leaves over stay empty
    full:  these slots hold replicas, too
    tuned: the optimizer's, if there is one, that begins at ``full`` and weighs further moves
    others that the caller knows of, such as a plan that looks at the new width alone

    price = seconds of the resize + seconds of a step's MoE layers * steps in the horizon

A later one is taken if it is worth the bytes that it copies more: a hundredth of the price.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from placer.cost import score, steps
from placer.errors import PlacementError
from placer.limits import clashes
from placer.placement import Placement
from placer.plan import Infeasible, Solution
from placer.planner import SAFEGUARDED, solve
from placer.problem import Problem
from placer.repair import refit
from placer.resize.devices import Devices
from placer.resize.engine import Engine
from placer.resize.naming import carried
from placer.resize.way import Resize, resize
from placer.schedule import Relabel

WORTH = 0.01


@dataclass(frozen=True, slots=True)
class Target:
    """step_s: seconds of a step's MoE layers after the resize, as expected from the profile"""

    resize: Resize
    step_s: float


def resize_to(
    problem: Problem,
    before: Placement,
    devices: Devices,
    engine: Engine,
    optimizer: str | None = SAFEGUARDED,
    others: Sequence[Placement] = (),
) -> Target | Infeasible:
    """The cheapest way from ``before`` to a placement of the problem, whose GPUs are the devices
    after.

    Infeasible, with what would fit, if the problem's limits clash, or its experts need more memory
    or more devices; or else as ``resize``. Raises PlacementError for placements or problems that
    these devices cannot have.
    """
    devices.fits(before, problem.linear)
    try:
        clash = clashes(problem)
    except PlacementError as error:  # not even one copy of each expert fits
        clash = Infeasible(str(error))
    if clash:
        return clash
    joined = problem.objective.uneven or problem.objective.dispatch == "coherent"
    relabel: Relabel = "once" if joined else "layers"
    best: Target | Infeasible | None = None
    price, count = np.inf, 0.0
    for placement in _candidates(problem, before, devices, optimizer, others):
        way = resize(before, placement, devices, engine, relabel)
        if isinstance(way, Infeasible):
            best = best or way
            continue
        step_s = score(problem, way.after, only_timed=True).step_s
        count = count or steps.rate(problem, step_s).per_s * problem.objective.horizon_s
        taken_s = way.seconds.total + step_s * count
        if taken_s < price * (1 - WORTH):
            best, price = Target(way, step_s), taken_s
    assert best is not None
    return best


def _candidates(
    problem: Problem,
    before: Placement,
    devices: Devices,
    optimizer: str | None,
    others: Sequence[Placement],
) -> Iterator[Placement]:
    running = carried(before, devices, problem.topology.nodes, before.slots_per_gpu)
    yield refit(problem, running)
    full = refit(problem, running, fill=True)
    yield full
    if optimizer is not None:
        free = replace(problem.objective, max_moved=1.0)
        tuned = solve(replace(problem, current=full, objective=free), optimizer)
        if isinstance(tuned, Solution):
            yield tuned.placement
    yield from others
