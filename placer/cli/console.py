"""What goes where: results to stdout, everything else to stderr; and the exit codes."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

DONE, BAD_INPUT, HOLD, INFEASIBLE = 0, 2, 3, 4

out = Console()
err = Console(stderr=True)


def note(text: str) -> None:
    """Something the user should know that is not the result."""
    err.print(f"note: {text}", style="dim", markup=False, highlight=False, soft_wrap=True)


def stop(word: str, reason: str, code: int) -> NoReturn:
    """End with a code other than DONE, and the reason on one line."""
    err.print(f"{word}: {reason}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def print_json(value: dict[str, Any]) -> None:
    """The one object that --json leaves on stdout."""
    json.dump(value, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Progress]:
    """A bar on stderr while something long runs; advance its first task. Gone afterwards."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    bar.add_task(what, total=total)
    with bar:
        yield bar
