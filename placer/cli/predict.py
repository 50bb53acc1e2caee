"""placer predict: what tables foretell of a trace."""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli import inputs
from placer.cli.console import note, out, print_json, progress
from placer.cli.tables import Tokenizer
from placer.files.plans import read_plan
from placer.files.routing import read_header
from placer.files.tables import read_tables
from placer.files.vocabularies import vocabulary_of
from placer.prediction.predict import predict as measured
from placer.report.prediction import prediction_json, prediction_tables
from placer.tables import keyed_by
from placer.tables.made import BY_SETS
from placer.trace import told


def predict(
    trace_files: Annotated[
        list[Path], typer.Argument(metavar="TRACE...", help="Traces (.npz) to judge them on.")
    ],
    tables_file: Annotated[
        Path, typer.Option("--tables", help="Tables (.npz), best made from other traces.")
    ],
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", help="The plan that is served: tables for another are refused."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Preset, YAML file or config.json of the model.")
    ] = None,
    tokenizer: Tokenizer = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Measure how much of a trace's routing tables foretell, and what that would be good for."""
    tables = read_tables(tables_file)
    headers = [read_header(path) for path in trace_files]
    shape = inputs.resolve_model(headers, model)
    digest = None if plan_file is None else read_plan(plan_file).placement.digest
    tables.origin.check(digest, shape, vocabulary_of(tokenizer))
    trace = inputs.read_traces(headers, shape)
    tables.origin.check(keyed_by=keyed_by(trace))
    with progress("predicting"):
        found = measured(trace, tables)
    notes = [*told(trace.notes), *_notes(found.known, tables.origin.keyed_by)]
    if as_json:
        reason = f"measured on {found.tokens} tokens"
        print_json(
            {"status": "predicted", "reason": reason, **prediction_json(found), "notes": notes}
        )
        return
    for table in prediction_tables(found):
        out.print(table)
    for text in notes[len(trace.notes) :]:  # the others are said already
        note(text)


def _notes(known: float, keyed: str) -> list[str]:
    found = [f"the tables know {known:.1%} of the tokens; of the others they tell the prior"]
    if keyed == BY_SETS:
        found.append(
            f"an upper bound: there are no token ids, and the {keyed}, which stand in, are not "
            "known before a token runs"
        )
    return found
