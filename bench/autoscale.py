"""Rules for the size of a pool on the Azure hours: tuned on the first half, scored on the second.

The pool is simulations/pool.py's, of 2 to 16 ranks; objectives are a TTFT of 3 s and a TPOT of
55 ms. Each request of the code trace comes five times, of the conversation trace twice. Every rule
has 32 or 40 settings to choose from, and takes those that are worth most on the first half:

    worth = attainment - price * rank-seconds / rank-seconds of the widest static pool

so at a price of 0.4 the widest pool costs as much as 40% of its requests.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from bench.timing import console
from controller.policies.policy import Decision
from controller.size_settings import Autoscale
from simulations.arrival_files import read_arrivals
from simulations.arrivals import Arrivals
from simulations.clairvoyant import Clairvoyant
from simulations.pool import Rank, attainment
from simulations.run import Outcome, simulate
from simulations.serving import Serving

FACTORS = {"code": 5, "conv": 2}
DELAYS = (0.6, 4.0, 31.0)
PRICE, PRICES = 0.4, (0.2, 0.4, 0.8)
AHEAD_S, AIMS = 4.0, (1.0, 2.0, 3.0)
BASE = Autoscale(ttft_s=3.0, tpot_s=0.055, least=2, most=16, max_gpus=16, cooldown_s=0.0)
HELD_S = (2.0, 10.0, 60.0, 300.0)
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "quantile": {
        "policy": ("quantile",), "load": (0.7, 1.1), "quantile": (0.3, 0.6, 0.9, 0.97),
        "stabilisation_s": HELD_S,
    },
    "threshold": {
        "policy": ("threshold",), "load": (0.2, 0.5), "window_s": (3.0, 15.0),
        "stabilisation_s": HELD_S, "step": (1, 4),
    },
    "horizontal": {
        "policy": ("horizontal",), "requests": (0.5, 2.0, 4.0, 8.0, 16.0),
        "window_s": (1.0, 15.0), "stabilisation_s": HELD_S, "every_s": (15.0,),
    },
}  # fmt: skip
EACH_SECOND = "horizontal each second"
GRIDS[EACH_SECOND] = {**GRIDS["horizontal"], "every_s": (1.0,)}
Tried = list[tuple[Any, Outcome]]  # settings, and what came of them on the first half


@dataclass(frozen=True, slots=True)
class Hour:
    name: str
    first: Arrivals
    second: Arrivals


def hours() -> Iterator[Hour]:
    folder = Path(os.environ["PLACER_TEST_DATA"]) / "azure-llm-2023"
    for name, factor in FACTORS.items():
        whole = read_arrivals(folder / f"AzureLLMInferenceTrace_{name}.csv").times(factor)
        middle_s = whole.seconds / 2
        yield Hour(name, whole.between(0, middle_s), whole.between(middle_s, whole.seconds + 1))


def settings_of(rule: str) -> Iterator[dict[str, Any]]:
    grid = GRIDS[rule]
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def best(tried: Tried, price: float, arrivals: Arrivals) -> Any:
    """The settings that are worth most; of equals the first."""
    widest = BASE.most * arrivals.seconds
    return max(tried, key=lambda one: one[1].attainment - price * one[1].rank_s / widest)[0]


def static(arrivals: Arrivals, ranks: int) -> Outcome:
    fixed = lambda seen, pool: Decision("hold", "static")  # noqa: E731
    return simulate(arrivals, BASE, 0.0, decide=fixed, ranks=ranks)


def rank_by_rank(arrivals: Arrivals, ranks: int) -> float:
    """Requests in time if each rank has its own (simulations/kernels.py)."""
    serving = Serving(arrivals, 1, ranks, ranks, Rank().speeds)
    serving.serve_all()
    ends = serving.state.first_s, serving.state.last_s
    return attainment(arrivals, *ends, BASE.ttft_s, BASE.tpot_s)


def oracle(arrivals: Arrivals, delay_s: float, aim_s: float) -> Outcome:
    ahead_s = AHEAD_S + delay_s
    return simulate(arrivals, BASE, delay_s, decide=Clairvoyant(BASE, ahead_s, delay_s, aim_s))


def told(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items() if key != "policy")


def run() -> None:
    if "PLACER_TEST_DATA" not in os.environ:
        console.print("autoscale: skipped: PLACER_TEST_DATA does not name a folder with the traces")
        return
    for hour in hours():
        tune, judge = len(hour.first), len(hour.second)
        console.print(f"{hour.name} x{FACTORS[hour.name]}: tuned on {tune:,}, scored on {judge:,}")
        show("rule", "delay", "price", "in time", "rank-seconds", "changes", "settings")
        for row in rows(hour):
            show(*row)


def show(*cells: str) -> None:
    rule, delay, price, kept, rank_s, changes, settings = cells
    console.print(
        f"{rule:24}{delay:>6}{price:>7}{kept:>9}{rank_s:>14}{changes:>9}  {settings}",
        markup=False, no_wrap=True,
    )  # fmt: skip


def rows(hour: Hour) -> Iterator[tuple[str, ...]]:
    for ranks in range(BASE.least, BASE.most + 1):
        found = static(hour.second, ranks)
        if ranks == BASE.most or 0.5 < found.attainment < 1:
            yield row(f"static {ranks}", None, None, found, "")
        if found.attainment == 1:
            yield row(f"static {ranks}", None, None, found, "")
            break
        if found.attainment > 0.5:
            apart = f"{rank_by_rank(hour.second, ranks):.4f}"
            yield f"static {ranks}, rank by rank", "", "", apart, "", "", ""
    for delay_s in DELAYS:
        first = delay_s == DELAYS[0]
        for rule in GRIDS:
            if rule == EACH_SECOND and not first:
                continue
            tried: Tried = [
                (told_, simulate(hour.first, replace(BASE, **told_), delay_s))
                for told_ in settings_of(rule)
            ]
            for price in PRICES if first else (PRICE,):
                chosen = best(tried, price, hour.first)
                found = simulate(hour.second, replace(BASE, **chosen), delay_s)
                yield row(rule, delay_s, price, found, told(chosen))
        aims: Tried = [(aim_s, oracle(hour.first, delay_s, aim_s)) for aim_s in AIMS]
        aim_s = best(aims, PRICE, hour.first)
        found = oracle(hour.second, delay_s, aim_s)
        yield row(
            f"oracle, {AHEAD_S + delay_s:g} s ahead", delay_s, PRICE, found, f"aim_s {aim_s:g}"
        )


def row(
    name: str, delay_s: float | None, price: float | None, found: Outcome, settings: str
) -> tuple[str, ...]:
    return (
        name,
        "" if delay_s is None else f"{delay_s:g} s",
        "" if price is None else f"{price:g}",
        f"{found.attainment:.4f}",
        f"{found.rank_s:,.0f}",
        str(found.changes),
        settings,
    )
