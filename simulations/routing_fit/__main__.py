"""python -m simulations.routing_fit: a recorded trace as a router in few numbers."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from placer.cli.console import out, print_json, progress, stop, writable
from placer.cli.inputs import read_traces, resolve_model
from placer.errors import PlacerError
from placer.files.routing import read_header, write_trace
from placer.files.specs import read_model
from placer.model import ModelShape
from simulations.routing_fit.figures import figures
from simulations.routing_fit.fit import fit


def main(
    trace: Annotated[list[Path], typer.Argument(help="Recorded routing, laid end to end.")],
    model: Annotated[str, typer.Option(help="Whose routing it is.", show_default=False)] = "",
    to: Annotated[
        Path | None, typer.Option("--out", help="Where a drawn trace goes.", callback=writable)
    ] = None,
    draw: Annotated[
        str, typer.Option(help="The model that --out is drawn for.", show_default=False)
    ] = "",
    requests: Annotated[int, typer.Option(min=0, help="In it; 0: as many as were recorded.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One object.")] = False,
) -> None:
    """Fit a router to a trace, and compare what placer makes of both."""
    try:
        headers = [read_header(path) for path in trace]
        shape = resolve_model(headers, model or None)
        recorded = read_traces(headers, shape)
        with progress("fitting", None):
            router = fit(recorded, seed)
            drawn = router.draw(*_dims(shape), recorded.seq_lens, seed)
            told = {"recorded": figures(recorded, shape), "drawn": figures(drawn, shape)}
        if to is not None:
            other = read_model(draw) if draw else shape
            lens = router.lengths(requests or recorded.sequences, seed)
            write_trace(to, router.draw(*_dims(other), lens, seed), other)
    except PlacerError as error:
        stop("usage", str(error), 2)
    if json:
        print_json({"router": asdict(router), **told})
        return
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in asdict(router).items())
    table = Table("", "recorded", "drawn", "error", caption=numbers)
    for name, value in told["recorded"].items():
        ours = told["drawn"][name]
        off = f"{ours / value - 1:+.1%}" if value else "-"
        table.add_row(name, f"{value:.3f}", f"{ours:.3f}", off)
    out.print(table)


def _dims(shape: ModelShape) -> tuple[int, int, int]:
    return shape.layers, shape.experts, shape.top_k


if __name__ == "__main__":
    typer.run(main)
