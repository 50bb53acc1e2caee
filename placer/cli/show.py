"""placer show: what is in a file."""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli import inputs
from placer.cli.console import note, out
from placer.files.dumps import logical_count
from placer.files.plans import read_plan
from placer.files.routing import read_header
from placer.report import figures, terminal


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trace, a profile or a plan.")],
    model_name: Annotated[
        str | None, typer.Option("--model", help="Of a recording that does not say it.")
    ] = None,
) -> None:
    """Show a trace, a profile or a plan as tables and small heat maps."""
    if file.suffix != ".json" or logical_count(file) is not None:
        header = read_header(file)
        model = inputs.resolve_model([header], model_name)
        out.print(f"{file}: a {header.kind} of {model.name}", highlight=False)
        out.print(terminal.of_profile(inputs.read_profiles([header], model)))
        return
    plan = read_plan(file)
    name = plan.model.name if plan.model else "a model it does not name"
    out.print(f"{file}: a plan for {name}. {plan.reason}", highlight=False)
    out.print(terminal.of_plan(plan))
    if plan.fit and plan.model:
        scores = {"before": plan.fit.before, "after": plan.fit.after}
        out.print(figures.table(plan.fit.after.basis, scores, plan.model.sized))
    for move in plan.moves[:8]:
        out.print(
            f"  layer {move.layer} expert {move.expert}: GPU {move.source} -> {move.gpu}, "
            f"{move.reason}",
            highlight=False,
        )
    if len(plan.moves) > 8:
        note(f"and {len(plan.moves) - 8} more moves in the file")
