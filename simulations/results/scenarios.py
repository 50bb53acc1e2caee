"""Scenarios as parts of the page: each of their controllers on the same requests."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from placer.report.page import BALANCE, GPUS, IN_TIME
from simulations.outcome import Told, form_errors, simulate
from simulations.results.pictures import Figure, lines
from simulations.results.section import Section
from simulations.scenario import Scenario

FOLDER = Path(__file__).parents[1] / "scenarios"
SHOWN = {IN_TIME: "in time", BALANCE: "balance", GPUS: "GPUs"}
LARGE = ("deepseek-288", "kimi-512", "ten-thousand")  # hours of work: for the full page alone
HOUR_S, MINUTE_S = 3600.0, 60.0
OURS, NOBODY = "placer", "none"  # controllers of scenarios
# Differences of shares that are none: with three seeds of busy.yaml placer's share in time is off
# EPLB's by -0.0017, +0.0007 and -0.0001, that is, by as much more or less with another seed.
ALIKE_IN_TIME, ALIKE_HOURS = 0.002, 0.005
PLENTY = 0.995  # in time, where there is little left to win
FEW = 4  # pools that are told of one by one
MEANS = (
    ("requests in time", "{:.2%}", "attainment"),
    ("GPU hours", "{:,.1f}", "gpu_hours"),
    ("balancedness", "{:.3f}", "balancedness"),
    ("decisions written", "{:,.0f}", "decisions"),
)


@dataclass(frozen=True, slots=True)
class _Total:
    """in_time: share of requests; moved: bytes of weights"""

    in_time: float
    gpu_hours: float
    moved: int


@dataclass(frozen=True, slots=True)
class Run:
    """A scenario's first seconds, under one controller."""

    path: Path
    controller: str
    seconds: float
    seed: int = 0

    @property
    def scenario(self) -> Scenario:
        whole = Scenario(self.path)
        return whole.part(self.seconds, whole.scheduled)


def runs(seconds: float, full: bool) -> list[Run]:
    """All that there are, at most so long. full: the large ones, too"""
    return [
        Run(path, controller, seconds)
        for path in sorted(FOLDER.glob("*.yaml"))
        if full or path.stem not in LARGE
        for controller in Scenario(path).controllers
    ]


def ran(run: Run) -> Told:
    return simulate(run.scenario, run.controller, run.seed)


def of_scenario(found: Mapping[Run, Told]) -> Section:
    """found: of all controllers of one scenario"""
    first = next(iter(found))
    scenario, name = first.scenario, first.path.stem
    command = f"placer simulate simulations/scenarios/{first.path.name} --seed {first.seed}"
    notes = []
    if scenario.scheduled > 1:
        errors = form_errors(scenario, first.controller, first.seed)
        told = ", ".join(f"{what} {error:.1%}" for what, error in errors.items())
        notes = [
            f"One of {scenario.scheduled} requests went where the scheduler said, the others by "
            f"load; in the first minutes that is off the form that schedules all by: {told}."
        ]
    notes += compared({run.controller: told for run, told in found.items()})
    if scenario.seconds < Scenario(first.path).seconds:
        notes.append(f"The first {scenario.seconds / MINUTE_S:,.0f} minutes of it.")
        command += f" --seconds {scenario.seconds:.0f}"
    return Section(
        f"Scenario: {name}",
        _about(first.path),
        command,
        "predicted",
        ("figure", *(run.controller for run in found), "how"),
        list(_rows(found.values())),
        _figure(name, found),
        notes,
    )


def compared(found: Mapping[str, Told]) -> Iterator[str]:
    """Whether the whole loop keeps more requests in time with as many GPU hours, or as many with
    fewer, than each of those that do a part of it; and if not, why."""
    if OURS not in found:
        return
    ours = _total(found[OURS])
    for name, told in found.items():
        if name in (OURS, NOBODY):
            continue
        other = _total(told)
        in_time, hours = ours.in_time - other.in_time, ours.gpu_hours / other.gpu_hours - 1
        fewer = hours < -ALIKE_HOURS and in_time >= -ALIKE_IN_TIME
        more = in_time > ALIKE_IN_TIME and hours <= ALIKE_HOURS
        moved = f", {ours.moved / other.moved:.2f} of its bytes moved" if other.moved else ""
        if fewer or more:
            verdict = "better"
        elif abs(in_time) <= ALIKE_IN_TIME and abs(hours) <= ALIKE_HOURS:
            verdict = "as good" if ours.moved < other.moved else "no better"
            if min(ours.in_time, other.in_time) > PLENTY:
                verdict += ": at this load both keep the objectives"
        else:
            verdict = "worse"
        yield (
            f"{OURS} against {name}: {in_time * 100:+.2f} points in time, {hours:+.1%} GPU hours"
            f"{moved}: {verdict}."
        )


def _total(told: Told) -> _Total:
    """Of all pools."""
    pools = told.pools.values()
    return _Total(
        sum(one.attainment * one.requests for one in pools) / sum(one.requests for one in pools),
        sum(one.gpu_hours for one in pools),
        sum(one.moved_bytes for one in pools),
    )


def _rows(found: Collection[Told]) -> Iterator[Sequence[str]]:
    """Each figure of each pool, under one controller after another; of many pools their means."""
    of_pools = next(iter(found)).run.figures
    if len(of_pools) > FEW:
        for what, form, of in MEANS:
            each = [[getattr(one, of) for one in told.pools.values()] for told in found]
            told_ = [f"{form.format(fmean(some))} ({_ends(form, some)})" for some in each]
            yield f"{what}, mean of {len(of_pools)} pools", *told_, "predicted"
        return
    for pool, figures in of_pools.items():
        for label in figures:
            what = label if len(of_pools) == 1 else f"{pool}: {label}"
            texts = [told.run.figures[pool].get(label, "-") for told in found]
            yield what, *texts, "predicted"


def _ends(form: str, values: Sequence[float]) -> str:
    return f"{form.format(min(values))} to {form.format(max(values))}"


def _about(path: Path) -> str:
    """What its first lines say."""
    told = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        told.append(line.lstrip("# "))
    return " ".join(told)


def _figure(name: str, found: Mapping[Run, Told]) -> Figure:
    """Of the first pool, if there are several."""
    first = next(iter(found.values()))
    pool = next(iter(first.pools))
    plots = {
        what: {
            run.controller: ([at_s / HOUR_S for at_s in line.at_s], line.values)
            for run, told in found.items()
            if (line := told.run.lines[pool][metric])
        }
        for metric, what in SHOWN.items()
    }
    return lines(name if len(first.pools) == 1 else f"{name}, {pool}", plots, "hours")
