"""python -m simulations.growth: what of the control plane grows faster than the fleet.

Fleets of many pools, and fleets that are one pool. Services, fleet, loop, arbiter and ledger are
those that ship; every GPU has an agent, whose messages are the protocol's bytes. Engines are maps
in memory, whose copies take their time: nobody serves. A slope is that of the logarithms, by least
squares: 1 is linear.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from placer.cli.console import out, progress, writable
from placer.files.atomic import write_text
from placer.model import preset
from placer.virtual_clock import VirtualClock
from simulations.control import ENGINES, RANKS, Control

GPUS = (312, 1248, 4992, 9984)
LONGEST_S = 3600.0
LOOKS = 3


@dataclass(frozen=True, slots=True)
class Grown:
    """What a fleet of this size takes."""

    gpus: int
    pools: int
    agents_bytes_per_s: float
    hearing_s: float
    look_s: float
    plans_s: float
    changing_s: float
    look_bytes: float
    change_bytes: float
    change_records: float
    changed_after_s: float


TOLD = {
    "agents_bytes_per_s": "bytes a second that agents send",
    "hearing_s": "CPU seconds a second to hear them",
    "look_s": "CPU seconds of a look at all pools, without optimizers",
    "plans_s": "CPU seconds of optimizers for a plan of each pool",
    "changing_s": "CPU seconds to carry these out",
    "look_bytes": "bytes that a look writes into the ledger",
    "change_bytes": "bytes that plans and their changes write",
    "change_records": "records of these",
    "changed_after_s": "virtual seconds until the last pool has its plan",
}


def measure(pools: int, engines: int, folder: Path, model: str = "deepseek-v3") -> Grown:
    """pools of so many engines; their ledger is a file in ``folder``."""
    clock = VirtualClock(1.8e9, 0)
    control = Control(clock, pools, engines, folder / f"{pools}-{engines}.db", preset(model))
    return clock.run(_measured(control, pools * engines * RANKS, pools))


async def _measured(control: Control, gpus: int, pools: int) -> Grown:
    await control.speak()
    begun_s = time.process_time()
    async with control.looking():
        while not control.is_changed and control.clock.monotonic() < LONGEST_S:
            await control.clock.sleep(1.0)
    took_s, changed_s = time.process_time() - begun_s, control.clock.monotonic()
    size, records = control.ledger.bytes, control.ledger.count
    hearing = [await control.speak() for _ in range(LOOKS)]
    control.planner.rests = True
    looks = []
    for _ in range(LOOKS):
        begun_s = time.process_time()
        await control.loop.tick()
        looks.append(time.process_time() - begun_s)
    look_bytes = (control.ledger.bytes - size) / LOOKS
    control.ledger.close()
    return Grown(
        gpus, pools, hearing[0].bytes_per_s, median(one.cpu for one in hearing), median(looks),
        control.planner.took_s, took_s - control.planner.took_s, look_bytes, size, records,
        changed_s,
    )  # fmt: skip


def slopes(grown: Sequence[Grown]) -> dict[str, float]:
    """By figure, of logarithms over that of GPUs."""
    x = np.log([one.gpus for one in grown])
    found = {}
    for name in TOLD:
        y = np.log([max(getattr(one, name), 1e-9) for one in grown])
        found[name] = float(np.polyfit(x, y, 1)[0]) if len(grown) > 1 else float("nan")
    return found


def picture(kinds: dict[str, Sequence[Grown]]) -> str:
    """A page with a plot of each figure, both axes logarithmic."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=3, cols=3, subplot_titles=list(TOLD.values()))
    for number, name in enumerate(TOLD):
        where = {"row": number // 3 + 1, "col": number % 3 + 1}
        for kind, grown in kinds.items():
            line: dict[str, Any] = {
                "x": [one.gpus for one in grown], "y": [getattr(one, name) for one in grown],
                "name": kind, "mode": "lines+markers", "showlegend": number == 0,
                "line": {"dash": "solid" if kind.startswith("many") else "dot"},
            }  # fmt: skip
            figure.add_scatter(**line, **where)
        figure.update_xaxes(type="log", title="GPUs", **where)
        figure.update_yaxes(type="log", **where)
    figure.update_annotations(font_size=11)
    figure.update_layout(height=1000, title="What grows with the fleet")
    return str(figure.to_html(include_plotlyjs=True))


def main(
    gpus: Annotated[list[int] | None, typer.Option(help="Fleets, about.")] = None,
    html: Annotated[Path | None, typer.Option(help="Where plots go.", callback=writable)] = None,
) -> None:
    """Measure fleets of many pools, and of one, and say what grows faster than they do."""
    sizes = [max(round(one / RANKS / ENGINES), 1) for one in gpus or GPUS]
    kinds: dict[str, Sequence[Grown]] = {}
    with TemporaryDirectory() as folder, progress("growing", len(sizes) * 2) as bar:
        for kind in ("many pools", "one pool"):
            found = []
            for size in sizes:
                pools, engines = (size, ENGINES) if kind == "many pools" else (1, size * ENGINES)
                found.append(measure(pools, engines, Path(folder)))
                bar.advance(bar.task_ids[0])
            kinds[kind] = found
    for kind, grown in kinds.items():
        slope = slopes(grown)
        table = Table(kind, *(f"{one.gpus:,} GPUs" for one in grown), "slope")
        table.add_row("pools", *(f"{one.pools}" for one in grown), "")
        for name, what in TOLD.items():
            values = (f"{getattr(one, name):,.4g}" for one in grown)
            table.add_row(what, *values, f"{slope[name]:.2f}")
        out.print(table)
    if html is not None:
        write_text(html, picture(kinds))


if __name__ == "__main__":
    typer.run(main)
