"""What came of a simulated fleet: by pool, for tables, JSON and pictures."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from controller.changes.operations import Operation
from placer.arrays import FloatArray
from simulations.fleet import World
from simulations.scenario import Scenario, Slo

COMPARED_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a pool. Quantiles are of requests that got a token.

    attainment: share of the requests that kept to both objectives; those without an answer did not
    gpu_hours:  of ranks that an engine had
    moved_bytes, pauses_s: of operations, by how they ended
    """

    requests: int
    finished: int
    attainment: float
    ttft_s: Mapping[str, float]
    tpot_s: Mapping[str, float]
    gpu_hours: float
    balancedness: float
    operations: Mapping[str, int]
    moved_bytes: int
    longest_pause_s: float
    decisions: int


@dataclass(frozen=True, slots=True)
class Told:
    """series: minute by minute; story: instants, and what was decided and done"""

    pools: Mapping[str, Outcome]
    series: Mapping[str, Mapping[str, Any]]
    story: list[tuple[float, str, str]]


def simulate(
    scenario: Scenario,
    controller: str,
    seed: int,
    passed: Callable[[float], None] = lambda seconds: None,
) -> Told:
    """The same seed gives the same answer, to the last bit. passed: is told of virtual seconds"""
    world = scenario.world(controller, seed)
    world.run(scenario.seconds, passed)
    try:
        return told(scenario, world)
    finally:
        world.ledger.close()


def form_errors(scenario: Scenario, controller: str, seed: int) -> Mapping[str, float]:
    """How far the form that schedules some requests is off the one that schedules all, of the first
    minutes: the largest of its pools, as shares, but for attainment: in points."""
    forms = (
        simulate(scenario.part(COMPARED_S, scheduled), controller, seed).pools
        for scheduled in (scenario.scheduled, 1)
    )
    some, every = forms
    found: dict[str, float] = {}
    for name, full in every.items():
        aggregated = some[name]
        errors = {"in time": abs(aggregated.attainment - full.attainment)}
        for what, ours, theirs in (
            ("TTFT", aggregated.ttft_s, full.ttft_s),
            ("TPOT", aggregated.tpot_s, full.tpot_s),
        ):
            for quantile, exact in theirs.items():
                errors[f"{what} {quantile}"] = abs(ours.get(quantile, 0.0) / exact - 1)
        for what, error in errors.items():
            found[what] = max(found.get(what, 0.0), error)
    return found


def told(scenario: Scenario, world: World) -> Told:
    pools, begins = {}, world.begins
    for name, model in world.pools.items():
        state, slo = model.serving.state, scenario.slo(name)
        ttft_s, tpot_s = state.first_s - state.at_s, _tpot_s(state)
        records = world.ledger.newest("operation", 10_000, name)
        operations: list[Operation] = [record.value for record in records]
        pools[name] = Outcome(
            requests=len(model.arrivals),
            finished=int(state.finished.sum()),
            attainment=_attainment(ttft_s, tpot_s, state.left, slo),
            ttft_s=_quantiles(ttft_s),
            tpot_s=_quantiles(tpot_s[state.output > 1]),
            gpu_hours=model.gpu_s / 3600,
            balancedness=float(np.mean(world.series[name].balancedness or [1.0])),
            operations=dict(Counter(str(one.phase) for one in operations)),
            moved_bytes=sum(one.copied_bytes for one in operations),
            longest_pause_s=max((one.longest_pause_s for one in operations), default=0.0),
            decisions=len(world.ledger.newest("decision", 10_000, name)),
        )
    story = [
        (round(record.at_s - begins, 3), record.pool, f"{record.id}: {record.reason}")
        for kind in ("decision", "operation", "plan")
        for record in world.ledger.newest(kind, 10_000)
    ]
    series = {name: asdict(one) for name, one in world.series.items()}
    return Told(pools, series, sorted(story))


def _tpot_s(state: Any) -> FloatArray:
    with np.errstate(invalid="ignore"):
        found: FloatArray = (state.last_s - state.first_s) / np.maximum(state.output - 1, 1)
    return found


def _attainment(ttft_s: FloatArray, tpot_s: FloatArray, left: Any, slo: Slo) -> float:
    with np.errstate(invalid="ignore"):
        kept = (ttft_s <= slo.ttft_s) & (tpot_s <= slo.tpot_s) & (left == 0)
    return float(kept.mean()) if len(kept) else 1.0


def _quantiles(seconds: FloatArray) -> Mapping[str, float]:
    there = seconds[np.isfinite(seconds)]
    if not len(there):
        return {}
    return {f"p{share}": float(np.quantile(there, share / 100)) for share in (50, 95, 99)}
