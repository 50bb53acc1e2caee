"""placer page: what a controller wrote down, as one page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli.console import out, writable
from placer.extras import MissingError
from placer.files.atomic import write_text


def page(
    ledger: Annotated[
        list[Path], typer.Option(help="Of placer serve; several are compared.", show_default=False)
    ],
    to: Annotated[
        Path, typer.Option("--out", help="The page, an HTML file.", callback=writable)
    ] = Path("page.html"),
) -> None:
    """Make a page of a ledger: fleet, plans, decisions and their reasons. The ledger is only read.

    The page of a controller that runs is at `placer serve --page HOST:PORT`.
    """
    try:
        from controller.page.of_ledger import of_ledgers
        from placer.report.html import page_report
    except ImportError as error:
        raise MissingError("placer page", "controller", error.name) from error

    write_text(to, page_report(of_ledgers(ledger)))
    out.print(f"wrote {to}", soft_wrap=True)
