"""placer apply: hand a plan to running engines."""

import time
from pathlib import Path
from typing import Annotated

import typer

from placer.agent import folder
from placer.agent.refusal import refusal
from placer.agent.status import Status
from placer.cli.console import BAD_INPUT, HOLD, out, progress, stop
from placer.errors import FileError, PlacementError
from placer.files.plans import read_plan, write_plan


def apply(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (.json).")],
    to: Annotated[Path, typer.Option(help="The agents' directory: their PLACER_AGENT.")],
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the ranks' acknowledgement.", min=0)
    ] = 60.0,
) -> None:
    """Hand PLAN to the engines whose agents report in a directory.

    Ends with 0 once every rank has the plan's map, 2 if one refuses it, 3 if they have not taken
    it up in time: an engine does at its next rebalancing step, under traffic.
    """
    plan = read_plan(plan_file)
    ranks = [status for status in folder.read_statuses(to) if status.worker.ep_size]
    if not ranks:
        raise FileError(f"no agent reports in {to}: start the engine with PLACER_AGENT={to}")
    for status in ranks:
        if reason := refusal(plan, status.worker):
            raise PlacementError(f"{status.worker.name} would refuse {plan_file}: {reason}")
    newest = folder.newest_plan(to)
    epoch = newest[0] + 1 if newest else 1
    (to / "plans").mkdir(exist_ok=True)
    write_plan(to / "plans" / f"{epoch:06}.json", plan)
    with progress(f"waiting for {len(ranks)} ranks"):
        late = _late(to, epoch, {status.worker.name for status in ranks}, wait)
    if late:
        stop(
            "hold",
            f"plan {epoch} is handed over but {', '.join(sorted(late))} has not applied it in "
            f"{wait:g} s: ranks do at the next rebalancing step, under traffic (--wait)",
            HOLD,
        )
    out.print(
        f"plan {epoch} is applied on {len(ranks)} ranks\n{plan.placement.digest}",
        highlight=False,
        soft_wrap=True,
    )


def _late(to: Path, epoch: int, names: set[str], wait_s: float) -> set[str]:
    """The ranks that have not applied the plan in time."""
    until = time.monotonic() + wait_s
    while True:
        statuses = folder.read_statuses(to)
        for status in statuses:
            _stop_if_refused(status, epoch)
        late = names - {status.worker.name for status in statuses if status.epoch >= epoch}
        if not late or time.monotonic() >= until:
            return late
        time.sleep(0.2)


def _stop_if_refused(status: Status, epoch: int) -> None:
    if status.refused_epoch == epoch:
        stop("error", f"{status.worker.name} refuses plan {epoch}: {status.refused}", BAD_INPUT)
