"""placer simulate: the shipped control loop on a modelled fleet, in virtual time."""

import json as json_
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.table import Table

from placer import parallel
from placer.cli.console import note, out, progress, writable
from placer.errors import PlacerError
from placer.extras import MissingError
from placer.files.atomic import write_text


def simulate(
    scenario: Annotated[list[Path], typer.Argument(help="YAML, see docs/simulations.md.")],
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    controller: Annotated[
        list[str] | None, typer.Option(help="Only these of the scenario's.", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Only the beginning.", show_default=False)
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="A:B, from A to before B, side by side.", show_default=False)
    ] = "",
    results: Annotated[
        Path | None,
        typer.Option(help="JSON lines of a sweep; what is in it is not run again."),
    ] = None,
    ray: Annotated[str, typer.Option(help="Address of a Ray cluster to sweep on, or local.")] = "",
    html: Annotated[
        Path | None, typer.Option(help="Where a page to look at goes.", callback=writable)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One object, with every minute.")] = False,
) -> None:
    """Run scenarios under each of their controllers, and compare what came of the requests.

    What decides is what ships; the engines are modelled. The same seed gives the same bytes.
    Several scenarios or --seeds are a sweep, on all cores or on Ray, whose --results are lines.
    """
    try:
        import simulations.outcome  # noqa: F401
    except ImportError as error:
        raise MissingError("placer simulate", "controller", error.name) from error

    if len(scenario) > 1 or seeds or results is not None:
        if html is not None or json:
            raise PlacerError("--html and --json are of one run: read --results, or leave --seeds")
        _sweep(scenario, _seeds(seeds, seed), controller or [], seconds, results, ray)
    else:
        _one(scenario[0], seed, controller or [], seconds, html, json)


def _one(
    path: Path,
    seed: int,
    controllers: Sequence[str],
    seconds: float | None,
    html: Path | None,
    json: bool,
) -> None:
    from placer.report.html import page_report
    from placer.report.page import Page
    from simulations.outcome import compare, form_errors
    from simulations.scenario import Scenario

    read = Scenario(path)
    read = read.part(seconds or read.seconds)
    read.check(controllers)
    names = list(controllers or read.controllers)
    with progress(f"{path.name}: {', '.join(names)}", read.seconds * len(names)) as bar:
        found = compare(read, seed, names, partial(bar.advance, bar.task_ids[0]))
    if html is not None:
        page = Page(f"{path.name}, seed {seed}", "simulation", [one.run for one in found.values()])
        write_text(html, page_report(page))
    if json:
        told = {name: _told(one) for name, one in found.items()}
        out.print_json(json_.dumps({"scenario": path.name, "seed": seed, "found": told}))
        return
    for pool in found[names[0]].pools:
        figures = [one.run.figures[pool] for one in found.values()]
        table = Table(pool, *found)
        for what in figures[0]:
            table.add_row(what, *(of.get(what, "-") for of in figures))
        out.print(table)
    if read.scheduled > 1:
        errors = form_errors(read, names[0], seed)
        told_ = ", ".join(f"{what} {error:.1%}" for what, error in errors.items())
        note(f"one of {read.scheduled} requests went where the scheduler said, the others by load")
        note(f"in the first minutes that is off the form that schedules all by: {told_}")


def _sweep(
    paths: Sequence[Path],
    seeds: Sequence[int],
    controllers: Sequence[str],
    seconds: float | None,
    results: Path | None,
    ray: str,
) -> None:
    from simulations.sweep import cases_of, sweep

    if results is None:
        raise PlacerError("a sweep writes lines as they are ready: say where, --results FILE")
    writable(results)
    cases = cases_of(paths, seeds, controllers, seconds)
    place = parallel.ray_cluster(ray) if ray else parallel.cores()
    with place as over, progress(f"simulating {len(cases)} runs", len(cases)) as bar:
        found = sweep(cases, results, over, partial(bar.advance, bar.task_ids[0]))
    rows: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for case, pools in found:
        for pool, of in pools.items():
            rows[case.path.name, pool, case.controller].append(of)
    table = Table("scenario", "pool", "controller", "seeds", "in time", "GPU h", "balance", "cut")
    for (scenario, pool, name), each in rows.items():
        table.add_row(
            scenario, pool, name, f"{len(each)}",
            _spread([one.attainment * 100 for one in each], "{:.2f}") + " %",
            _spread([one.gpu_hours for one in each], "{:,.1f}"),
            _spread([one.balancedness for one in each], "{:.3f}"),
            _spread([one.cut for one in each], "{:,.0f}"),
        )  # fmt: skip
    out.print(table)


def _seeds(told: str, one: int) -> Sequence[int]:
    """Raises PlacerError for what is no A:B."""
    if not told:
        return [one]
    found = re.fullmatch(r"(\d{1,9}):(\d{1,9})", told)
    if found is None or int(found[1]) >= int(found[2]):
        raise PlacerError(f"--seeds {told}: write the first and the one after the last, as 0:10")
    return range(int(found[1]), int(found[2]))


def _told(one: Any) -> dict[str, Any]:
    pools = {name: asdict(of) for name, of in one.pools.items()}
    return {"pools": pools, "series": one.series, "story": one.story}


def _spread(values: Sequence[float], form: str) -> str:
    """The mean, and from which to which."""
    mean, least, most = (form.format(one) for one in (fmean(values), min(values), max(values)))
    return mean if least == most else f"{mean} ({least} to {most})"
