"""What another width of a pool's engines would be, and cost."""

from collections.abc import Iterable
from dataclasses import asdict, fields

import numpy as np

from controller.changes.arbiter import Arbiter
from controller.changes.operations import Expected, Scale
from controller.config import told_in_settings
from controller.fleet.pools import Group
from controller.fleet.workers import FleetError
from controller.ports import Planner
from placer.errors import PlacerError
from placer.limits import clashes
from placer.model import ModelShape
from placer.placement import Placement
from placer.plan import Infeasible
from placer.problem import Problem
from placer.profile import Profile


async def sized(
    arbiter: Arbiter, planner: Planner, pool: str, ranks: int
) -> tuple[Scale, Placement | None, str]:
    """The change to so many ranks, the placement there, and why it cannot be, if so.

    Raises FleetError if the pool has that width or is being changed already, EngineLostError if it
    is not known what stands.
    """
    arbiter.refuse_if_busy()
    group, change, refused = asked(arbiter, pool, ranks)
    if refused:
        return change, None, refused
    stands = await arbiter.stands(group)
    policy = arbiter.config.of(pool)
    try:
        problem = _problem(arbiter, group, ranks, _of_now(arbiter, group))
        found = await planner.resized(problem, stands, policy.optimizer)
    except PlacerError as error:
        return change, None, str(error)
    if isinstance(found, Infeasible):
        return change, None, found.reason
    names = [field.name for field in fields(Expected) if field.name != "seconds"]
    costs = {name: getattr(found, name) for name in names}
    expected = Expected(**costs, seconds=asdict(found.seconds))
    return Scale(ranks, group.ranks, found.after.digest, expected), found.after, ""


def asked(arbiter: Arbiter, pool: str, ranks: int) -> tuple[Group, Scale, str]:
    """The engines that are meant, the change as far as it is known before it is planned, and why it
    cannot be, if so. Raises FleetError if the pool has that width, or is being changed."""
    if (group := arbiter.fleet.pool(pool).group()) is None:
        raise FleetError(f"all engines of {pool} are being resized: wait for that")
    if ranks == group.ranks:
        raise FleetError(f"engines of {pool} have {ranks} ranks already")
    change = Scale(ranks, group.ranks)
    if never := arbiter.kinds[Scale].refusal(arbiter.fleet.pool(pool), change):
        return group, change, never
    policy, gpus = arbiter.config.of(pool), ranks * len(group.engines)
    most = policy.autoscale.max_gpus if policy.autoscale else None
    if most and gpus > most:
        why = f"{gpus} GPUs are more than the pool may have: max_gpus is {most}"
        return group, change, why
    return group, change, policy.frozen


def widths(arbiter: Arbiter, group: Group, wanted: Iterable[int]) -> tuple[int, ...]:
    """Those of the wanted that the pool's hardware and its memory allow."""
    return tuple(ranks for ranks in wanted if _can_be(arbiter, group, ranks))


def _can_be(arbiter: Arbiter, group: Group, ranks: int) -> bool:
    try:
        return clashes(_problem(arbiter, group, ranks, _alike(group.model))) is None
    except PlacerError:
        return False


def _of_now(arbiter: Arbiter, group: Group) -> Profile:
    """The traffic of now; if there was none, all experts are alike."""
    phase = arbiter.config.of(group.pool).phase
    return group.profile(phase, arbiter.ledger.clock.monotonic()) or _alike(group.model)


def _alike(model: ModelShape) -> Profile:
    load = np.full((model.layers, model.experts), float(model.top_k))
    return Profile(load, model.top_k, tokens=model.experts, sequences=0)


def _problem(arbiter: Arbiter, group: Group, ranks: int, profile: Profile) -> Problem:
    policy = arbiter.config.of(group.pool)
    slots = -(-group.slots // ranks) * ranks
    if any(arbiter.engines.moves_itself(group.pool, engine) for engine in group.engines):
        slots = group.slots // group.ranks * ranks  # its memory is what it is
    with told_in_settings():
        return Problem(
            model=group.model,
            topology=policy.hardware(ranks),
            profile=profile,
            slots=slots,
            objective=policy.objective,
        )
