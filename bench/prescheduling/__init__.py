"""Pre-scheduling: what is gained by knowing a request's experts before it runs, held out."""

import os
from collections.abc import Sequence
from functools import partial

import numpy as np
from rich.table import Table

from bench.matrix import DATA
from bench.prescheduling import speed
from bench.timing import console
from controller.router.scheduling.decide import SCHEDULERS
from simulations.streams.engines import SCHEDULES, decoded
from simulations.streams.local_rate import AT_HOME, HOMES, best_found, cases, rates
from simulations.streams.step import UNDER_WAY, as_they_come, at_once, both
from simulations.streams.worlds import SPLITS, World, worlds

GPUS, RECORDINGS = (4, 8), 3
PLANS = os.environ.get("PLANS", f"joint,{HOMES},cocluster,{AT_HOME}").split(",")
WAYS = {"at once": at_once} | {
    f"as they come, {count} a rank": partial(as_they_come, a_rank=count) for count in UNDER_WAY
}
PARTS = os.environ.get("PARTS", "rates,step,elsewhere,engines,speed").split(",")


def run() -> None:
    """All tables, or some: PARTS=rates,step,...; with some plans: PLANS=joint,..."""
    known = list(worlds(DATA))
    if len(known) < RECORDINGS:
        console.print(f"left out: recordings that are not in {DATA} (PLACER_TEST_DATA names it)")
    if "speed" in PARTS:
        console.print(_speed())
    for world in known:
        if "rates" in PARTS:
            console.print(_rates(world))
    if "step" in PARTS:
        console.print(_step(known, HOMES))
    if "elsewhere" in PARTS:
        console.print(_step([world.elsewhere() for world in known], HOMES))
    if "engines" in PARTS:
        for world in known:
            if world.decodes:
                console.print(_engines(world))


def _rates(world: World) -> Table:
    table = _table(
        f"{world.name}: activations at home, x of 1/G, and tokens of the fullest rank over the "
        f"mean, all and in windows; {SPLITS} splits, mean ± standard error",
        "ranks", "plan", "", "LAR x", "of the offline gain", "tokens", "in windows",
    )  # fmt: skip
    for gpus in GPUS:
        for plan in PLANS:
            some = list(cases(world, gpus, plan, SPLITS))
            found = [rates(case) for case in some]
            offline = np.mean([one["table, offline"] for one in found])
            if plan in (HOMES, AT_HOME):
                best = [best_found(case, plan) for case in some]
                table.add_row(f"{gpus}", plan, "best found on what is judged", _mean(best))
            for name in ("oracle, offline", "table, offline", *SCHEDULERS):
                each = [one[name] for one in found]
                cells = [f"{gpus}", plan, name, _mean(each)]
                if name in SCHEDULERS:
                    cells.append(f"{(np.mean(each) - 1) / (offline - 1):.2f}")
                    cells += [
                        _mean([one[f"{name}, {what}"] for one in found])
                        for what in ("all", "windows")
                    ]
                table.add_row(*cells)
    return table


def _step(known: Sequence[World], plan: str) -> Table:
    table = _table(
        f"{plan}'s plan with homes from tables, over joint's with least-loaded homes; mean ± "
        "standard error of the splits",
        "", "ranks", "redundant", "homes", "remote fan-out", "x", "balance", "less", "step x",
    )  # fmt: skip
    for quarter in (False, True):
        for gpus in GPUS:
            of_all: dict[str, list[tuple[float, float, float]]] = {}
            for world in known:
                found = list(both(world, gpus, plan, world.splits, quarter))
                for homes, judged in WAYS.items():
                    rows = [judged(*one) for one in found]
                    x = [ours.remote / plain.remote for plain, ours in rows]
                    less = [ours.balance - plain.balance for plain, ours in rows]
                    step = [ours.step_s / plain.step_s for plain, ours in rows]
                    table.add_row(
                        world.name, f"{gpus}", "E/4" if quarter else "0", homes,
                        _mean([ours.remote for _, ours in rows]), _mean(x),
                        _mean([ours.balance for _, ours in rows]), _mean(less), _mean(step),
                    )  # fmt: skip
                    of_all.setdefault(homes, []).append(
                        (float(np.mean(x)), float(np.mean(less)), float(np.mean(step)))
                    )
            for homes, means in of_all.items():
                x_all, less_all, step_all = np.mean(means, axis=0)
                table.add_row(
                    "mean", f"{gpus}", "E/4" if quarter else "0", homes, "", f"{x_all:.3f}", "",
                    f"{less_all:+.3f}", f"{step_all:.3f}",
                )  # fmt: skip
    return table


def _engines(world: World) -> Table:
    table = _table(
        f"{world.name}: 4 engines, 16 requests each in the mean; {SPLITS} splits",
        "", "distinct experts a layer and step", "x", "tokens", "largest batch",
    )  # fmt: skip
    base: list[float] = []
    for name, band in SCHEDULES:
        found = [decoded(world, name, band, seed) for seed in range(SPLITS)]
        distinct = [one.distinct for one in found]
        base = base or distinct
        x = [mine / least for mine, least in zip(distinct, base, strict=True)]
        table.add_row(
            f"{name}, band {band:.0%}" if band else name, _mean(distinct), _mean(x),
            _mean([one.tokens for one in found]), _mean([one.batch for one in found]),
        )  # fmt: skip
    return table


def _speed() -> Table:
    table = _table(
        f"CPU time of decisions: {speed.RANKS} ranks, {speed.IDS:,} token ids, median", "", ""
    )
    long, short = speed.decide_us(speed.LONG), speed.decide_us(speed.SHORT, True)
    table.add_row(f"a decision on {speed.LONG:,} tokens", f"{long:.0f} us")
    table.add_row("the same without Numba", f"{speed.without_numba_us():.0f} us")
    table.add_row(
        f"on {speed.SHORT} tokens, with its reason in words", f"{1e6 / short:,.0f} a second"
    )
    many = speed.batched_per_s(speed.SHORT)
    table.add_row(f"on {speed.SHORT} tokens, many at once", f"{many:,.0f} a second")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _mean(values: Sequence[float]) -> str:
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} ± {error:.3f}"
