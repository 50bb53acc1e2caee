"""placer profile: traces into one small profile."""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli import inputs
from placer.cli.console import apart, note, writable
from placer.files.routing import read_header, write_profile


def profile(
    trace_files: Annotated[
        list[Path], typer.Argument(metavar="TRACE...", help="Traces or profiles (.npz) to add up.")
    ],
    out_file: Annotated[
        Path, typer.Option("--out", help="Where the profile goes (.npz).", callback=writable)
    ],
    model: Annotated[
        str | None, typer.Option(help="Preset, YAML file or config.json of the model.")
    ] = None,
    clusters: Annotated[
        bool,
        typer.Option("--clusters", help="With clusters of requests, which plan --homes asks for."),
    ] = False,
) -> None:
    """Count a recording into a profile: loads, transitions, co-activations. Reads piece by piece,
    so that a recording may be larger than memory."""
    apart([out_file], trace_files)
    headers = [read_header(path) for path in trace_files]
    shape = inputs.resolve_model(headers, model)
    counted = inputs.read_profiles(headers, shape, clusters)
    write_profile(out_file, counted, shape if shape.sized else None)
    of = f" of {counted.sequences} sequences" if counted.sequences else ""
    size = f"{counted.tokens:g} tokens{of}"
    note(f"wrote {out_file}: {size}, {shape.dims}")
