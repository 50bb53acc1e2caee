"""placer tables: traces into the tables that a scheduler looks tokens up in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from placer.arrays import FloatArray
from placer.cli import inputs
from placer.cli.console import note, progress, writable
from placer.errors import FileError, ModelError
from placer.files.atomic import sha256
from placer.files.npz import opened
from placer.files.plans import read_plan
from placer.files.routing import Header, read_chunks, read_header
from placer.files.tables import write_tables
from placer.model import ModelShape
from placer.placement import Placement
from placer.tables import Counts, counted, tables_of
from placer.tables.made import BY_SETS, is_same

Tokenizer = Annotated[
    Path | None,
    typer.Option(help="The tokenizer's file: its hash names the vocabulary of the token ids."),
]


def tables(
    trace_files: Annotated[
        list[Path], typer.Argument(metavar="TRACE...", help="Traces (.npz) to count.")
    ],
    plan_file: Annotated[
        Path, typer.Option("--plan", metavar="PLAN", help="The plan (.json) that is served.")
    ],
    out_file: Annotated[
        Path, typer.Option("--out", help="Where the tables go (.npz).", callback=writable)
    ],
    model: Annotated[
        str | None, typer.Option(help="Preset, YAML file or config.json of the model.")
    ] = None,
    tokenizer: Tokenizer = None,
    embedding: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with the model's token embedding, as `embedding` [ids, dimensions]: "
            "tokens that no trace has are then looked up as their nearest neighbour."
        ),
    ] = None,
) -> None:
    """Count where tokens' experts are under a plan, for schedulers and prefetching.

    The file tells of no request: contexts of 2 to 4 tokens that fewer than two requests have in
    common are left out.
    """
    plan = read_plan(plan_file)
    headers = [read_header(path) for path in trace_files]
    shape = inputs.resolve_model(headers, model)
    if plan.model is not None and not is_same(plan.model, shape):
        raise ModelError(
            f"{plan_file} is for {plan.model.name} ({plan.model.dims}) and the traces are of "
            f"{shape.name} ({shape.dims}): give traces of the model that was placed"
        )
    found = tables_of(
        _counted(headers, shape, plan.placement),
        shape,
        vocabulary_of(tokenizer),
        None if embedding is None else _embedding(embedding),
    )
    write_tables(out_file, found)
    origin = found.origin
    if origin.keyed_by == BY_SETS:
        note(
            f"the traces have no token ids: the tables are by {BY_SETS}, which nobody knows before "
            "a token runs; what they predict is an upper bound"
        )
    note(
        f"wrote {out_file} ({decimal(out_file.stat().st_size)}): {origin.tokens:,} tokens of "
        f"{origin.requests:,} requests, {len(found.devices.vocabulary.tokens):,} known tokens, "
        f"{sum(map(len, found.experts.keys)):,} contexts; for plan {origin.plan:.19}..."
    )


def vocabulary_of(tokenizer: Path | None) -> str:
    """What names the vocabulary of a tokenizer's file; empty without one."""
    return "" if tokenizer is None else f"sha256:{sha256(tokenizer)}"


def _counted(headers: Sequence[Header], model: ModelShape, placement: Placement) -> Counts:
    """Piece by piece, so that a recording may be larger than memory."""
    found: Counts | None = None
    with progress("counting", sum(header.tokens or 0 for header in headers)) as bar:
        for header in headers:
            if header.kind != "trace":
                raise FileError(f"{header.path} is a profile: give a trace, which has the tokens")
            for chunk in read_chunks(header.path, model):
                part = counted(chunk, placement)
                found = part if found is None else found + part
                bar.advance(bar.task_ids[0], chunk.tokens)
    assert found is not None  # a trace has tokens
    return found


def _embedding(path: Path) -> FloatArray:
    with opened(path) as npz:
        npz.shape("embedding", "ids, dimensions")
        return npz.array("embedding")
