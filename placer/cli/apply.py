"""placer apply: hand a plan to running engines, through a controller or a directory."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from placer.agent import folder
from placer.cli import operations
from placer.cli.console import BAD_INPUT, HOLD, out, progress, stop
from placer.client import is_address
from placer.errors import FileError, PlacementError
from placer.files.atomic import make_folder
from placer.files.plans import read_plan, write_plan
from placer.refusal import refusal
from placer.worker import Status

WAIT_S = 60.0  # for the ranks of a directory


def apply(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (.json).")],
    to: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS|DIR", help="A controller's host:port, or the agents' directory."
        ),
    ],
    pool: Annotated[
        str, typer.Option(help="Of the controller's, if it has more than one.", show_default=False)
    ] = "",
    wait: Annotated[
        float | None,
        typer.Option(
            help="Seconds to wait for the end: 60 for a directory, else as long as it takes.",
            min=0,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Hand PLAN to a controller, or to the engines whose agents report in a directory.

    Ends with 0 once every rank has the plan's map, 2 if one refuses it, 3 if they have not taken
    it up in time or a controller took it back. An engine does it at its next rebalancing step,
    under traffic.
    """
    if is_address(to) and not os.path.isdir(to):
        operations.hand_over(plan_file, to, pool, wait)
    elif pool:
        raise FileError(f"--pool is a controller's and {to} is a directory: leave it out")
    else:
        _hand_over(plan_file, Path(to), WAIT_S if wait is None else wait)


def _hand_over(plan_file: Path, to: Path, wait: float) -> None:
    plan = read_plan(plan_file)
    ranks = folder.read_statuses(to, time.time())
    if not ranks:
        raise FileError(f"no agent reports in {to}: start the engine with PLACER_AGENT={to}")
    width = ranks[0].worker.ep_size
    if len(ranks) < width:
        raise FileError(f"{len(ranks)} of {width} ranks report in {to}: wait for the others")
    for status in ranks:
        if reason := refusal(plan, status.worker):
            raise PlacementError(f"{status.worker.name} would refuse {plan_file}: {reason}")
    newest = folder.newest_plan(to)
    known = [newest[0]] if newest else []
    for status in ranks:
        known += [status.epoch, status.refused_epoch]
    epoch = max(known) + 1
    make_folder(to / "plans")
    write_plan(to / "plans" / f"{epoch:06}.json", plan)
    with progress(f"waiting for {len(ranks)} ranks"):
        late = _late(to, epoch, plan.placement.digest, ranks, wait)
    if late:
        stop(
            "hold",
            f"plan {epoch} is handed over but not applied in {wait:g} s by {', '.join(late)}"
            ": ranks do at the next rebalancing step, under traffic (--wait)",
            HOLD,
        )
    out.print(
        f"plan {epoch} is applied on {len(ranks)} ranks\n{plan.placement.digest}",
        soft_wrap=True,
    )


def _late(to: Path, epoch: int, digest: str, ranks: Sequence[Status], wait_s: float) -> list[str]:
    """Names of the ranks that have not applied the plan in time."""
    names = {status.worker.name for status in ranks}
    until = time.monotonic() + wait_s
    while True:
        statuses = folder.read_statuses(to, time.time())
        for status in statuses:
            _stop_if_refused(status, epoch)
        late = names - {one.worker.name for one in statuses if one.digest == digest}
        if not late or time.monotonic() >= until:
            return sorted(late)
        time.sleep(0.2)


def _stop_if_refused(status: Status, epoch: int) -> None:
    if status.refused_epoch == epoch:
        stop("error", f"{status.worker.name} refuses plan {epoch}: {status.refused}", BAD_INPUT)
