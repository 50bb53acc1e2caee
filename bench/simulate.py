"""What it takes to simulate a fleet: an hour of it request by request, and how days grow."""

import resource
from pathlib import Path
from time import process_time

import numpy as np
from rich.table import Table

from bench.timing import console
from simulations.outcome import simulate
from simulations.scenario import Scenario

SCENARIOS = Path(__file__).parents[1] / "simulations" / "scenarios"
HOURS = (1, 3, 8, 24)
HOUR_S = 3600.0


def run() -> None:
    hour, day = (Scenario(SCENARIOS / f"{name}.yaml") for name in ("drift", "day"))
    _taken(hour.part(60.0), "none")  # compiled
    table = Table(title="288 GPUs, 50 requests/s, one core", title_justify="left")
    for name in ("form", "controller", "virtual hours", "requests", "CPU s", "at most, GB"):
        table.add_column(name, justify="right")
    for controller in ("none", "placer"):
        table.add_row("each scheduled", controller, *_row(1, hour, controller))
    taken = []
    for hours in HOURS:
        row = _row(hours, day, "none")
        taken.append(float(row[2]))
        table.add_row("aggregated", "none", *row)
    table.add_row("aggregated", "placer", *_row(24, day, "placer"))
    console.print(table)
    slope = np.polyfit(np.log(HOURS), np.log(taken), 1)[0]
    console.print(f"CPU seconds grow with hours to the power of {slope:.2f}")


def _row(hours: float, scenario: Scenario, controller: str) -> tuple[str, ...]:
    requests, taken_s = _taken(scenario.part(hours * HOUR_S), controller)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return f"{hours:g}", f"{requests:,}", f"{taken_s:.1f}", f"{most:.2f}"


def _taken(scenario: Scenario, controller: str) -> tuple[int, float]:
    begun_s = process_time()
    told = simulate(scenario, controller, 0)
    return sum(one.requests for one in told.pools.values()), process_time() - begun_s
