"""A simulated run as the page of a control loop shows it."""

from collections.abc import Mapping, Sequence

from controller.page.records import Told
from placer.report.page import (
    BALANCE,
    FANOUT,
    GPUS,
    IN_TIME,
    RUNNING,
    WAITING,
    PoolRow,
    Run,
    line,
    newest,
)
from simulations.fleet import World
from simulations.modelled import PoolModel


def run_of(
    name: str,
    world: World,
    in_time: Mapping[str, Sequence[float]],
    figures: Mapping[str, Mapping[str, str]],
) -> Run:
    """in_time: by pool and minute; figures: to compare, by pool and label"""
    told = Told(world.ledger, world.begins, option=None)
    events, notes = newest(told.events())
    lines = {}
    for pool, series in world.series.items():
        found: dict[str, Sequence[float]] = {
            BALANCE: series.balancedness, GPUS: series.gpus, WAITING: series.waiting,
            RUNNING: series.running, IN_TIME: in_time[pool],
        }  # fmt: skip
        lines[pool] = {metric: line(series.at_s, values) for metric, values in found.items()}
    return Run(
        name,
        world.begins,
        [_row(world, pool, model) for pool, model in world.pools.items()],
        lines,
        events,
        told.plans(),
        {FANOUT: "simulations do not count it"},
        figures,
        notes,
    )


def _row(world: World, name: str, model: PoolModel) -> PoolRow:
    maps = [engine.placement for engine in model.engines.values()]
    widths = sorted({one.gpus for one in maps})
    decided = next(iter(world.ledger.newest("decision", 1, name)), None)
    return PoolRow(
        name,
        model.hardware.model.name,
        "no controller" if world.config is None else world.config.of(name).mode,
        len(maps),
        sum(one.gpus for one in maps),
        " and ".join(map(str, widths)),
        maps[0].slots,
        round(model.balancedness, 4),
        decided.value.outcome if decided else "",
        decided.reason if decided else "",
    )
