"""placer export and placer import: plans as other engines' files, and back."""

from pathlib import Path
from typing import Annotated

import typer

from placer.checks import violations
from placer.cli.console import BAD_INPUT, apart, note, stop, writable
from placer.errors import FileError, PlacementError
from placer.files.atomic import read_text, write_text
from placer.files.plans import LIMIT, placement_of, read_plan, write_plan
from placer.files.specs import read_model
from placer.formats import FORMATS, dump, parse
from placer.names import ranges
from placer.plan import Plan, Provenance

Format = Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")]
ModelName = Annotated[
    str | None,
    typer.Option("--model", help="The model: says which of its layers have experts."),
]


def export_plan(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (.json).")],
    format_name: Format,
    out_file: Annotated[
        Path, typer.Option("--out", help="Where the engine's file goes.", callback=writable)
    ],
    model: ModelName = None,
) -> None:
    """Write a plan as an engine's own file. A plan that breaks a rule is refused."""
    apart([out_file], [plan_file])
    plan = read_plan(plan_file)
    shape = read_model(model) if model else plan.model
    if broken := violations(plan.placement, plan.objective, shape, plan.topology):
        stop("error", f"{plan_file}: {broken[0]}", BAD_INPUT)
    write_text(out_file, dump(format_name, plan.placement, shape))
    where = shape.moe_layers if shape else range(plan.placement.layers)
    note(f"wrote {out_file} ({format_name}; experts in layers {ranges(where)} of the model)")


def import_plan(
    foreign: Annotated[Path, typer.Argument(metavar="FILE", help="An engine's placement file.")],
    format_name: Format,
    out_file: Annotated[
        Path, typer.Option("--out", help="Where the plan goes (.json).", callback=writable)
    ],
    gpus: Annotated[
        int | None, typer.Option(help="GPUs, where the file does not say.", min=1)
    ] = None,
    nodes: Annotated[int, typer.Option(help="Nodes they stand in.", min=1)] = 1,
    model: ModelName = None,
    map_name: Annotated[
        str | None, typer.Option("--map", help="Which, of a file with maps of several models.")
    ] = None,
) -> None:
    """Read an engine's placement file into a plan, to check, score or plan from."""
    apart([out_file], [foreign])
    shape = read_model(model) if model else None
    text = read_text(foreign, LIMIT)
    try:
        found = parse(format_name, text, shape, map_name)
        if gpus and found.gpus and gpus != found.gpus:
            raise PlacementError(f"--gpus {gpus} but the file has {found.gpus}: leave --gpus out")
        if not (count := gpus or found.gpus):
            raise PlacementError(f"{format_name} files do not say how many GPUs: give --gpus")
        if shape and found.experts not in (None, shape.experts):
            raise PlacementError(
                f"the file says {found.experts} experts and {shape.name} has {shape.experts}"
                ": give the --model it came from"
            )
        experts = shape.experts if shape else found.experts
        placement = placement_of(found.rows, count, nodes, experts)
    except (FileError, PlacementError) as error:
        raise type(error)(f"{foreign}: {error}") from error
    plan = Plan(
        placement,
        reason=f"imported from {foreign.name} ({format_name})",
        model=shape,
        provenance=Provenance(optimizer=f"imported from {format_name}"),
    )
    write_plan(out_file, plan)
    note(f"wrote the plan to {out_file}")
    for text in found.notes:
        note(text)
    for sentence in violations(placement, plan.objective, shape)[:5]:
        note(f"placer check will refuse it: {sentence}")
