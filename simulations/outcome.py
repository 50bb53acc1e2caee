"""What came of a simulated fleet: by pool, for tables, JSON and pictures."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from controller.changes.operations import Operation
from placer.arrays import BoolArray, FloatArray
from placer.report.page import Run
from simulations.fleet import MINUTE_S, TOLD, World
from simulations.page import run_of
from simulations.scenario import Scenario
from simulations.state import State

COMPARED_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a pool. Quantiles are of requests that got their first token, or that got all.

    attainment: share of the requests that kept to both objectives; those without an answer did not
    cached:     share of the prompts' tokens, of those that began, that a rank's prefix cache had
    cut:        that had begun to answer when their engine was lost, and began again
    gpu_hours:  of ranks that an engine had
    moved_bytes, pauses_s: of operations, by how they ended
    """

    requests: int
    finished: int
    cut: int
    cached: float
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
    """series: minute by minute; story: instants, and what was decided and done; run: the same for
    a page"""

    pools: Mapping[str, Outcome]
    series: Mapping[str, Mapping[str, Any]]
    story: list[tuple[float, str, str]]
    run: Run


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
        return told(scenario, world, controller)
    finally:
        world.ledger.close()


def compare(
    scenario: Scenario,
    seed: int,
    controllers: Sequence[str] = (),
    passed: Callable[[float], None] = lambda seconds: None,
) -> Mapping[str, Told]:
    """What came of the same requests under each of its controllers, or of these alone."""
    names = controllers or scenario.controllers
    return {name: simulate(scenario, name, seed, passed) for name in names}


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


def told(scenario: Scenario, world: World, controller: str) -> Told:
    pools, in_time, begins = {}, {}, world.begins
    for name, model in world.pools.items():
        state, slo = model.serving.state, scenario.slo(name)
        # In the state's own arrays, which nothing reads again: each more of tens of millions of
        # requests would take hundreds of MB.
        tpot_s = _tpot_s(state)
        kept = tpot_s <= slo.tpot_s  # without an answer it did not keep to it
        tpot_s[state.output == 1] = np.nan
        tpot_quantiles = _quantiles(tpot_s)
        ttft_s = np.subtract(state.first_s, state.at_s, out=state.first_s)
        kept &= ttft_s <= slo.ttft_s
        ttft_quantiles = _quantiles(ttft_s)
        in_time[name] = _by_minute(state.at_s, kept, len(world.series[name].at_s))
        records = world.ledger.newest("operation", TOLD, name)
        operations: list[Operation] = [record.value for record in records]
        pools[name] = Outcome(
            requests=len(model.arrivals),
            finished=int(state.finished.sum()),
            cut=model.serving.cut,
            cached=int(state.hits.sum()) / max(int((state.hits + state.prefilled).sum()), 1),
            attainment=float(kept.mean()) if len(kept) else 1.0,
            ttft_s=ttft_quantiles,
            tpot_s=tpot_quantiles,
            gpu_hours=model.gpu_s / 3600,
            balancedness=float(np.mean(world.series[name].balancedness or [1.0])),
            operations=dict(Counter(str(one.phase) for one in operations)),
            moved_bytes=sum(one.copied_bytes for one in operations),
            longest_pause_s=max((one.longest_pause_s for one in operations), default=0.0),
            decisions=len(world.ledger.newest("decision", TOLD, name)),
        )
    story = [
        (round(record.at_s - begins, 3), record.pool, f"{record.id}: {record.reason}")
        for kind in ("decision", "operation", "plan")
        for record in world.ledger.newest(kind, TOLD)
    ]
    series = {name: asdict(one) for name, one in world.series.items()}
    figures = {name: _figures(one) for name, one in pools.items()}
    run = run_of(controller, world, in_time, figures)
    return Told(pools, series, sorted(story), run)


def _figures(one: Outcome) -> Mapping[str, str]:
    """For people who compare."""
    return {
        "requests answered": f"{one.finished:,} of {one.requests:,}",
        "requests in time": f"{one.attainment:.2%}",
        "answers cut": f"{one.cut:,}",
        "prompt tokens cached": f"{one.cached:.1%}",
        **{f"TTFT {share}": f"{seconds * 1e3:,.0f} ms" for share, seconds in one.ttft_s.items()},
        **{f"TPOT {share}": f"{seconds * 1e3:,.1f} ms" for share, seconds in one.tpot_s.items()},
        "GPU hours": f"{one.gpu_hours:,.1f}",
        "balancedness": f"{one.balancedness:.3f}",
        "operations": ", ".join(f"{count} {how}" for how, count in one.operations.items()) or "0",
        "weights moved": f"{one.moved_bytes / 1e9:,.1f} GB",
        "longest pause": f"{one.longest_pause_s:.3f} s",
        "decisions written": f"{one.decisions:,}",
    }


def _tpot_s(state: State) -> FloatArray:
    """In the place of when last tokens came."""
    found, gaps = state.last_s, state.ends
    with np.errstate(invalid="ignore"):
        np.subtract(found, state.first_s, out=found)
        found /= np.maximum(np.subtract(state.output, 1, out=gaps), 1, out=gaps)
    return found


def _by_minute(at_s: FloatArray, kept: BoolArray, minutes: int) -> Sequence[float]:
    """The share of those that arrived in each; NaN if none did. at_s: ascending"""
    bounds = np.searchsorted(at_s, MINUTE_S * np.arange(minutes + 1))
    arrived = np.diff(bounds)
    good = np.array([np.count_nonzero(kept[begin:end]) for begin, end in pairwise(bounds)])
    with np.errstate(invalid="ignore"):
        shares: list[float] = (good / arrived).tolist()
    return shares


def _quantiles(seconds: FloatArray) -> Mapping[str, float]:
    """Of those that are finite. They are put in another order."""
    count = int(np.isfinite(seconds).sum())
    if not count:
        return {}
    seconds.sort()  # what is not finite is last
    there = seconds[:count]
    return {
        f"p{share}": float(np.quantile(there, share / 100, overwrite_input=True))
        for share in (50, 95, 99)
    }
