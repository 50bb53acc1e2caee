"""placer check: whether a plan may be applied."""

from pathlib import Path
from typing import Annotated

import typer

from placer.checks import violations
from placer.cli.console import BAD_INPUT, out, stop
from placer.files.plans import read_plan


def check(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (.json).")],
) -> None:
    """Check that a plan loses no expert and keeps every limit. Ends with 2 if it does not."""
    plan = read_plan(plan_file)
    broken = violations(plan.placement, plan.objective, plan.model, plan.topology)
    for sentence in broken[1:]:
        out.print(sentence, markup=False, highlight=False, soft_wrap=True)
    if broken:
        more = f" (and {len(broken) - 1} more, above)" if len(broken) > 1 else ""
        stop("error", f"{plan_file}: {broken[0]}{more}", BAD_INPUT)
    placement = plan.placement
    known_by = "" if plan.model else " that the map names"  # one that it lost is none of them
    out.print(
        f"{plan_file} may be applied: {placement.layers} layers x {placement.slots} slots hold "
        f"every one of the {placement.experts} experts{known_by} on {placement.gpus} GPUs",
        highlight=False,
        soft_wrap=True,
    )
    for what, known in (("memory", plan.model and plan.topology), ("model", plan.model)):
        if not known:
            out.print(f"not checked: {what} (the plan does not say)", highlight=False)
    out.print(placement.digest, highlight=False, soft_wrap=True)
