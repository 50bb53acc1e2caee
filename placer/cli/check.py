"""placer check: whether a plan may be applied."""

from pathlib import Path
from typing import Annotated

import typer

from placer.checks import violations
from placer.cli.console import BAD_INPUT, out, print_json, stop
from placer.files.plans import read_plan


def check(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (.json).")],
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Check that a plan loses no expert and keeps every limit. Ends with 2 if it does not."""
    plan = read_plan(plan_file)
    placement = plan.placement
    broken = violations(placement, plan.objective, plan.model, plan.topology)
    known = {"memory": plan.model and plan.topology, "model": plan.model}
    unchecked = [what for what, is_known in known.items() if not is_known]
    known_by = "" if plan.model else " that the map names"  # one that it lost is none of them
    held = (
        f"{placement.layers} layers x {placement.slots} slots hold every one of the "
        f"{placement.experts} experts{known_by} on {placement.gpus} GPUs"
    )
    if as_json:
        print_json(
            {
                "status": "invalid" if broken else "valid",
                "reason": broken[0] if broken else held,
                "violations": broken,
                "not_checked": unchecked,
                "digest": placement.digest,
            }
        )
    if broken:
        if not as_json:
            for sentence in broken[1:]:
                out.print(sentence, soft_wrap=True)
        more = f" (and {len(broken) - 1} more, above)" if len(broken) > 1 else ""
        stop("error", f"{plan_file}: {broken[0]}{more}", BAD_INPUT)
    if as_json:
        return
    out.print(f"{plan_file} may be applied: {held}", soft_wrap=True)
    for what in unchecked:
        out.print(f"not checked: {what} (the plan does not say)")
    out.print(placement.digest, soft_wrap=True)
