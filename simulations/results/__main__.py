"""python -m simulations.results: docs/results.md from scratch."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from placer.cli.console import note, out, progress, writable
from placer.files.atomic import write_text
from placer.parallel import Map, cores
from simulations.papers import PAPERS
from simulations.papers.__main__ import Data
from simulations.results.faults import of_stories
from simulations.results.page import written
from simulations.results.papers import of_paper
from simulations.results.pictures import drawn
from simulations.results.scenarios import HOUR_S, of_scenario, ran, runs
from simulations.results.section import Section
from simulations.stories.batches import tell_all

AT_A_TIME = 20
SMALL, FULL = (48 * HOUR_S, 500, 3), (1e9, 10_000, 10)  # seconds a scenario, stories, seeds a paper


def main(
    target: Annotated[
        Path,
        typer.Option("--out", help="Where the page goes, pictures beside it.", callback=writable),
    ] = Path("docs/results.md"),
    full: Annotated[bool, typer.Option("--full", help="All seconds, stories and seeds.")] = False,
    data: Data = None,
) -> None:
    """Make all results, and write them down: papers' tables, scenarios, stories of faults."""
    begun_s = time.monotonic()
    seconds, stories, seeds = FULL if full else SMALL
    with cores() as over:
        parts = {
            "What papers published": _papers(over, seeds, data),
            "Scenarios": _scenarios(over, seconds, full),
            "Faults": _stories(over, stories),
        }
    figures = [one.figure for part in parts.values() for one in part if one.figure is not None]
    pictures = drawn(figures)
    if pictures is None:
        note("no pictures: there is no Chromium to draw them")
    command = f"make simulations{'-full' if full else ''}"
    text, files = written(parts, pictures or [], target, command)
    for path, picture in files.items():
        path.parent.mkdir(exist_ok=True)
        write_text(path, picture)
    write_text(target, text)
    out.print(f"{target}: made in {time.monotonic() - begun_s:,.0f} s")


def _papers(over: Map, seeds: int, data: Path | None) -> Sequence[Section]:
    found: list[Section] = []
    with progress("papers", total=len(PAPERS)) as bar:
        for sections in over(partial(of_paper, seeds=seeds, data=data), PAPERS):
            found += sections
            bar.advance(bar.task_ids[0])
    return found


def _scenarios(over: Map, seconds: float, full: bool) -> Sequence[Section]:
    every, found = runs(seconds, full), {}
    with progress("scenarios", total=len(every)) as bar:
        for run, told in zip(every, over(ran, every), strict=True):
            found[run] = told
            bar.advance(bar.task_ids[0])
    paths = dict.fromkeys(run.path for run in every)
    return [of_scenario({run: found[run] for run in every if run.path == path}) for path in paths]


def _stories(over: Map, count: int) -> Sequence[Section]:
    parts = [range(first, min(first + AT_A_TIME, count)) for first in range(0, count, AT_A_TIME)]
    batches = []
    with progress("stories", total=count) as bar:
        for batch in over(tell_all, parts):
            batches.append(batch)
            bar.advance(bar.task_ids[0], batch.stories)
    return [of_stories(batches)]


if __name__ == "__main__":
    typer.run(main)
