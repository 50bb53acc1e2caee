"""python -m simulations.papers: a paper's figures beside ours."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as Shown

from placer.cli.console import out, stop
from placer.errors import PlacerError
from simulations.papers import PAPERS, SEEDS, tables

Data = Annotated[
    Path | None,
    typer.Option(envvar="PLACER_TEST_DATA", help="Recorded routing: docs/benchmarks.md."),
]


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Those of PAPERS; all of them.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of what is drawn; figures are means.")] = SEEDS,
    data: Data = None,
) -> None:
    """Published figures beside ours."""
    for name in names or list(PAPERS):
        try:
            found = tables(name, seeds, data)
        except PlacerError as error:
            stop("usage", str(error), 2)
        for one in found:
            shown = Shown("", "published", "ours", "how", "why", title=one.title, caption=one.about)
            for row in one.rows:
                shown.add_row(row.what, *row.told, row.how, row.why)
            out.print(shown)


if __name__ == "__main__":
    typer.run(main)
