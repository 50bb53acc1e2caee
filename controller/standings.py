"""Where the engines of a pool stand."""

from controller.fleet import Pool
from controller.ports import EngineLostError, Engines
from placer.placement import Placement


async def standings(engines: Engines, pool: Pool) -> list[tuple[str, Placement]]:
    """Names and maps of the engines that answer. Raises EngineLostError if none does."""
    found, why = [], "it has no engines"
    for engine in pool.engines:
        try:
            found.append((engine, await engines.stands(pool.name, engine)))
        except EngineLostError as error:
            why = str(error)
    if not found:
        raise EngineLostError(f"{pool.name}: {why}")
    return found


def same_experts(one: Placement, other: Placement) -> bool:
    """Whether all ranks hold the same experts, in whatever slots: digests tell slots apart."""
    return one.shape == other.shape and bool((one.copies == other.copies).all())
