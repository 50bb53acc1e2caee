"""placer simulate: the shipped control loop on a modelled fleet, in virtual time."""

import json as json_
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from placer.cli.console import note, out, progress, writable
from placer.extras import MissingError
from placer.files.atomic import write_text


def simulate(
    scenario: Annotated[Path, typer.Argument(help="YAML, see docs/simulations.md.")],
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    controller: Annotated[
        list[str] | None, typer.Option(help="Only these of the scenario's.", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Only the beginning.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Where a page to look at goes.", callback=writable)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One object, with every minute.")] = False,
) -> None:
    """Run a scenario under each of its controllers, and compare what came of the requests.

    What decides is what ships; the engines are modelled. The same seed gives the same bytes.
    """
    try:
        from placer.report.html import page_report
        from placer.report.page import Page
        from simulations.outcome import form_errors
        from simulations.outcome import simulate as simulated
        from simulations.scenario import Scenario
    except ImportError as error:
        raise MissingError("placer simulate", "controller", error.name) from error

    read = Scenario(scenario)
    if seconds is not None:
        read = read.part(seconds, read.scheduled)
    found = {}
    names = controller or list(read.controllers)
    read.check(names)
    for name in names:
        with progress(f"{scenario.name}: {name}", total=read.seconds) as bar:
            found[name] = simulated(read, name, seed, partial(bar.advance, bar.task_ids[0]))
    if html is not None:
        title = f"{scenario.name}, seed {seed}"
        page = Page(title, "simulation", [one.run for one in found.values()])
        write_text(html, page_report(page))
    if json:
        told = {name: _told(one) for name, one in found.items()}
        out.print_json(json_.dumps({"scenario": scenario.name, "seed": seed, "found": told}))
        return
    table = Table("pool", "controller", "requests", "in time", "TTFT p50/p99", "TPOT p50/p99",
                  "GPU h", "balance", "changes", "moved")  # fmt: skip
    for name, one in found.items():
        for pool, of in one.pools.items():
            table.add_row(
                pool, name, f"{of.finished:,} of {of.requests:,}", f"{of.attainment:.2%}",
                _both(of.ttft_s), _both(of.tpot_s), f"{of.gpu_hours:,.1f}",
                f"{of.balancedness:.3f}", f"{sum(of.operations.values())}",
                f"{of.moved_bytes / 1e9:,.1f} GB",
            )  # fmt: skip
    out.print(table)
    if read.scheduled > 1:
        errors = form_errors(read, names[0], seed)
        told_ = ", ".join(f"{what} {error:.1%}" for what, error in errors.items())
        note(f"one of {read.scheduled} requests went where the scheduler said, the others by load")
        note(f"in the first minutes that is off the form that schedules all by: {told_}")


def _told(one: Any) -> dict[str, Any]:
    pools = {name: asdict(of) for name, of in one.pools.items()}
    return {"pools": pools, "series": one.series, "story": one.story}


def _both(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return "-"
    return f"{seconds['p50'] * 1e3:,.0f}/{seconds['p99'] * 1e3:,.0f} ms"
