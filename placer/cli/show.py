"""placer show: what is in a file."""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli import inputs
from placer.cli.console import note, out
from placer.files.plans import read_plan
from placer.files.routing import read_header
from placer.report import figures, terminal


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trace, a profile or a plan.")],
) -> None:
    """Show a trace, a profile or a plan as tables and small heat maps."""
    if file.suffix != ".json":
        header = read_header(file)
        model = inputs.resolve_model([header], None)
        out.print(f"{file}: a {header.kind} of {model.name}")
        out.print(terminal.of_profile(inputs.read_profiles([header], model)))
        return
    plan = read_plan(file)
    name = plan.model.name if plan.model else "a model it does not name"
    out.print(f"{file}: a plan for {name}. {plan.reason}")
    out.print(terminal.of_plan(plan))
    if plan.fit and plan.model:
        scores = {"before": plan.fit.before, "after": plan.fit.after}
        out.print(figures.table(plan.fit.after.basis, scores, plan.model.sized))
    for move in plan.moves[:8]:
        out.print(
            f"  layer {move.layer} expert {move.expert}: {move.origin} -> GPU {move.gpu}, "
            f"{move.reason}",
        )
    if len(plan.moves) > 8:
        note(f"and {len(plan.moves) - 8} more moves in the file")
