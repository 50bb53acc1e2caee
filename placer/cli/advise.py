"""placer advise: is it worth anything to know a model's experts ahead?"""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli import inputs
from placer.cli.console import note, out, print_json, progress
from placer.errors import ModelError
from placer.files.routing import read_header
from placer.prediction.advice import SPLITS
from placer.prediction.advice import advise as judged
from placer.report.prediction import advice_json, advice_table


def advise(
    trace_files: Annotated[
        list[Path],
        typer.Argument(metavar="TRACE...", help="Traces (.npz), a file for each kind of traffic."),
    ],
    gpus: Annotated[
        int | None, typer.Option(help="GPUs that serve it; the topology's own if left out.", min=1)
    ] = None,
    topology: Annotated[
        str, typer.Option(help="Preset (h100, gb200-nvl72, ...) or YAML file.")
    ] = inputs.DEFAULT_TOPOLOGY,
    model: Annotated[
        str | None, typer.Option(help="Preset, YAML file or config.json of the model.")
    ] = None,
    seed: Annotated[int, typer.Option(help="For the halves that are drawn.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Say whether knowing experts ahead is worth anything here, in seconds a step.

    Everything is fitted on one half of the sequences and judged on the other, again and again.
    """
    headers = [read_header(path) for path in trace_files]
    shape = inputs.resolve_model(headers, model)
    if not shape.sized:
        raise ModelError(f"{shape.name}: seconds need the model's sizes: give --model")
    traces = [inputs.read_traces([header], shape) for header in headers]
    where = inputs.resolve_topology(topology, gpus, None)
    rounds = SPLITS + (len(traces) if len(traces) > 1 else 0)
    with progress(f"judging {rounds} times", rounds) as bar:
        advice = judged(shape, where, traces, seed, lambda: bar.advance(bar.task_ids[0]))
    reason = "; ".join(f"{one.way}: {one.reason}" for one in advice.savings)
    if as_json:
        print_json({"status": "advised", "reason": reason, **advice_json(advice)})
        return
    out.print(f"{shape.name} on {where.title}")
    out.print(advice_table(advice))
    for saving in advice.savings:
        out.print(f"{saving.way}: {saving.verdict}: {saving.reason}", soft_wrap=True)
    out.print(f"worth it: {advice.best}", soft_wrap=True)
    for text in advice.notes:
        note(text)
