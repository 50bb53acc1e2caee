"""Observed placements: where the engines of one width stand, as they say."""

import numpy as np

from controller.fleet.pools import Group
from controller.fleet.workers import FleetError
from controller.ports import EngineLostError, Engines
from placer.arrays import IntArray
from placer.placement import Placement


async def observed_placements(engines: Engines, group: Group) -> list[tuple[str, Placement]]:
    """Names and maps of the engines that answer. Raises EngineLostError if none does."""
    found, why = [], "it has no engines"
    for engine in group.engines:
        try:
            found.append((engine, await engines.stands(group.pool, engine)))
        except EngineLostError as error:
            why = str(error)
    if not found:
        raise EngineLostError(f"{group.pool}: {why}")
    return found


def refuse_lost(engine: str, placement: Placement) -> None:
    """Raises FleetError if an expert is on no rank: engines copy weights between ranks only."""
    if lost := placement.lost:
        layer, expert = lost[0]
        raise FleetError(
            f"no rank of {engine} holds expert {expert} of layer {layer} to copy it from: start "
            "the engine again, so that it loads all experts from the checkpoint"
        )


def same_experts(one: Placement, other: Placement) -> bool:
    """Whether all ranks hold the same experts, in whatever slots: digests tell slots apart."""
    return one.shape == other.shape and bool((_by_rank(one) == _by_rank(other)).all())


def _by_rank(placement: Placement) -> IntArray:
    """[layers, ranks, slots of a rank], which stand in order there."""
    table = placement.physical_to_logical.reshape(placement.layers, placement.gpus, -1)
    return np.sort(table, axis=2)
