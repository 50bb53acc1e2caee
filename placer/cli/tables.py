"""placer tables: traces into what a scheduler looks tokens up in; or what a controller counted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from placer.arrays import FloatArray
from placer.cli import inputs
from placer.cli.client import controller
from placer.cli.console import apart, note, progress, writable
from placer.errors import FileError, ModelError
from placer.files.atomic import replacing
from placer.files.npz import opened
from placer.files.plans import read_plan
from placer.files.routing import Header, read_chunks, read_header
from placer.files.tables import read_tables, write_tables
from placer.files.vocabularies import vocabulary_of
from placer.model import ModelShape
from placer.placement import Placement
from placer.tables import Counts, counted, tables_of
from placer.tables.answers import Answered, halves
from placer.tables.made import BY_SETS, is_same
from placer.v1 import placement_pb2

Tokenizer = Annotated[
    Path | None,
    typer.Option(help="The tokenizer's file: its hash names the vocabulary of the token ids."),
]


def tables(
    trace_files: Annotated[
        list[Path] | None, typer.Argument(metavar="[TRACE...]", help="Traces (.npz) to count.")
    ] = None,
    *,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN", help="The plan (.json) that is served.")
    ] = None,
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
    address: Annotated[
        str | None,
        typer.Option("--from", help="A controller's host:port: fetch what it has counted."),
    ] = None,
    pool: Annotated[str, typer.Option(help="With --from: whose requests.")] = "",
) -> None:
    """Count where tokens' experts are under a plan, for schedulers and prefetching.

    The file tells of no request: contexts of 2 to 4 tokens of fewer than two requests are left out.

    With --from: fetch the tables that a controller makes of the requests that it keeps of a pool,
    for the plan or what stands. It takes a trace reader's token.
    """
    apart([out_file], trace_files or [])
    if address is not None and not trace_files:
        _fetch(address, pool, plan_file, out_file)
    elif address is None and trace_files and plan_file is not None:
        _make(trace_files, plan_file, out_file, model, tokenizer, embedding)
    else:
        raise typer.BadParameter("give traces and --plan, or a controller with --from")
    if not out_file.is_file():  # a pipe or a device, which cannot be read again
        note(f"wrote the tables to {out_file}")
        return
    found = read_tables(out_file)
    origin = found.origin
    if origin.keyed_by == BY_SETS:
        note(
            f"the traces have no token ids: the tables are by {BY_SETS}, which nobody knows before "
            "a token runs; what they predict is an upper bound"
        )
    note(
        f"wrote {out_file} ({decimal(out_file.stat().st_size)}): {origin.tokens:,} tokens of "
        f"{origin.sequences:,} sequences, {len(found.devices.vocabulary.tokens):,} known tokens, "
        f"{sum(map(len, found.experts.keys)):,} contexts; for plan {origin.plan:.19}..."
    )


def _make(
    trace_files: Sequence[Path],
    plan_file: Path,
    out_file: Path,
    model: str | None,
    tokenizer: Path | None,
    embedding: Path | None,
) -> None:
    plan = read_plan(plan_file)
    headers = [read_header(path) for path in trace_files]
    shape = inputs.resolve_model(headers, model)
    if plan.model is not None and not is_same(plan.model, shape):
        raise ModelError(
            f"{plan_file} is for {plan.model.name} ({plan.model.dims}) and the traces are of "
            f"{shape.name} ({shape.dims}): give traces of the model that was placed"
        )
    vocabulary = vocabulary_of(tokenizer)
    embedded = None if embedding is None else _embedding(embedding)
    counts = _counted(headers, shape, plan.placement)
    answered = _halves(headers, shape)
    write_tables(out_file, tables_of(counts, shape, vocabulary, embedded, answered))


def _fetch(address: str, pool: str, plan_file: Path | None, out_file: Path) -> None:
    digest = "" if plan_file is None else read_plan(plan_file).placement.digest
    request = placement_pb2.TablesRequest(pool=pool, digest=digest)
    with controller(address) as found, replacing(out_file) as file:
        for answer in found.read(found.placement.Tables, request):
            file.write(answer.part)


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


def _halves(headers: Sequence[Header], model: ModelShape) -> Iterator[Answered]:
    for header in headers:
        for chunk in read_chunks(header.path, model):
            yield from halves(chunk)


def _embedding(path: Path) -> FloatArray:
    with opened(path) as npz:
        npz.shape("embedding", "ids, dimensions")
        return npz.array("embedding")
