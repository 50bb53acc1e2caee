"""python -m simulations.stories: thousands of stories, and the shortest of each kind that fails."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from placer.cli.console import out, progress, stop
from placer.parallel import cores
from simulations.stories.batches import Batch, tell_all
from simulations.stories.shrinking import shortest
from simulations.stories.story import Story, a_story
from simulations.stories.world import tell

AT_A_TIME = 20  # stories that a process is given
FAILED = 1


def main(
    seeds: Annotated[str, typer.Option(help="FIRST:LAST, without the last.")] = "0:200",
    only: Annotated[
        str, typer.Option(help="Of a single seed, the numbers of its events: 0,3,5, or none.")
    ] = "",
) -> None:
    """Tell stories of operators and faults, and check that every rule holds at every step."""
    first, _, last = seeds.partition(":")
    if not first.isdigit() or (last and not last.isdigit()):
        stop("usage", f"--seeds {seeds!r}: write them as 0:10000, or one alone", 2)
    span = range(int(first), int(last) if last else int(first) + 1)
    if len(span) == 1:
        _one(a_story(span[0]), only)
        return
    begun_s, batches = time.monotonic(), []
    parts = [span[start : start + AT_A_TIME] for start in range(0, len(span), AT_A_TIME)]
    with progress("stories", total=len(span)) as bar, cores() as over:
        for batch in over(tell_all, parts):
            batches.append(batch)
            bar.advance(bar.task_ids[0], batch.stories)
    failed = [one for batch in batches for one in batch.failed]
    _sum(batches, len(failed), time.monotonic() - begun_s)
    rules: set[str] = set()
    for story, told in failed:
        assert told.wrong is not None
        if told.wrong.rule not in rules:
            rules.add(told.wrong.rule)
            _shrunk(story, told.wrong.rule)
    if failed:
        seeds = " ".join(str(story.seed) for story, _ in failed)
        out.print(f"failed: {seeds}", markup=False)
        raise typer.Exit(FAILED)


def _sum(batches: Sequence[Batch], failed: int, took_s: float) -> None:
    stories, core_s = (sum(getattr(one, of) for one in batches) for of in ("stories", "seconds"))
    operations, commands, kills = (
        sum(getattr(one, of) for one in batches) for of in ("operations", "commands", "kills")
    )
    out.print(
        f"{stories:,} stories in {took_s:,.0f} s ({core_s / stories:.2f} s of a core each, load "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores): {operations:,} operations, "
        f"{commands:,} commands, {kills:,} kills of a controller; {failed} failed",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _one(story: Story, only: str) -> None:
    numbers: Sequence[int] = range(len(story.events))
    if only:
        numbers = [] if only == "none" else [int(one) for one in only.split(",")]
    kept = replace(story, events=tuple(story.events[number] for number in numbers))
    logging.getLogger("placer.controller").setLevel(logging.CRITICAL)
    told = tell(kept)
    if told.wrong is None:
        out.print(f"{kept}\nall rules hold", markup=False, soft_wrap=True)
        return
    if not only:
        _shrunk(story, told.wrong.rule)
    else:
        out.print(f"{kept}\n{told.wrong}", markup=False, soft_wrap=True)
    raise typer.Exit(FAILED)


def _shrunk(story: Story, rule: str) -> None:
    short = shortest(story, rule)
    numbers = ",".join(str(story.events.index(one)) for one in short.events) or "none"
    again = f"python -m simulations.stories --seeds {story.seed} --only {numbers}"
    out.print(f"{short}\n{tell(short).wrong}\nagain: {again}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
