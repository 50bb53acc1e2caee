"""placer show: what is in a file, or what is known of a model."""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli import inputs
from placer.cli.console import note, out, print_json
from placer.errors import FileError
from placer.files.dumps import logical_count
from placer.files.plans import read_plan
from placer.files.routing import read_header
from placer.files.specs import is_model, understand
from placer.report import figures, models, terminal


def show(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|MODEL",
            help="A trace, a profile, a plan or a model: config.json, its folder, YAML, a preset.",
        ),
    ],
    model_name: Annotated[
        str | None, typer.Option("--model", help="Of a recording that does not say it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A model as one JSON object.")] = False,
) -> None:
    """Show a trace, a profile or a plan as tables and small heat maps, or a model's sizes."""
    if is_model(str(file)):
        _show_model(str(file), as_json)
        return
    if as_json:
        raise FileError(f"{file} is not a model, and --json shows models alone: leave it out")
    if file.suffix != ".json" or logical_count(file) is not None:
        header = read_header(file)
        model = inputs.resolve_model([header], model_name)
        out.print(f"{file}: a {header.kind} of {model.name}")
        out.print(terminal.of_profile(inputs.read_profiles([header], model)))
        return
    plan = read_plan(file)
    name = plan.model.name if plan.model else "a model it does not name"
    out.print(f"{file}: a plan for {name}. {plan.reason}")
    out.print(terminal.of_plan(plan))
    if plan.homes:
        out.print(plan.homes.told)
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


def _show_model(name: str, as_json: bool) -> None:
    found = understand(name)
    if as_json:
        print_json(models.as_json(found))
        return
    out.print(f"{found.shape.name}: {found.shape.dims}")
    for what, value in models.rows(found):
        out.print(f"  {what:<28}{value}")
    for sentence in found.notes:
        note(sentence)
