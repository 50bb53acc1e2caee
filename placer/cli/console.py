"""What goes where: results to stdout, everything else to stderr; and the exit codes.

What is printed may come from anybody's file: a terminal does nothing but show it.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import (
    Console,
    ConsoleOptions,
    ConsoleRenderable,
    RenderableType,
    RenderHook,
    RenderResult,
)
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from placer.errors import FileError
from placer.files.atomic import check_target
from placer.report.plain import plain, shown

DONE, BAD_INPUT, HOLD, INFEASIBLE = 0, 2, 3, 4


@dataclass(frozen=True, slots=True)
class _Shown:
    what: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.what, options):
            yield Segment(text if control else shown(text), style, control)


class _Shows(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Shown(one) for one in renderables]


def _console(**options: Any) -> Console:
    console = Console(markup=False, emoji=False, highlight=False, **options)
    console.push_render_hook(_Shows())
    return console


out = _console()
err = _console(stderr=True)


def note(text: str) -> None:
    """Something the user should know that is not the result."""
    err.print(f"note: {plain(text)}", style="dim", soft_wrap=True)


def tell(word: str, reason: str) -> None:
    """Why it ends without a result, on one line."""
    err.print(f"{word}: {plain(reason)}", soft_wrap=True)


def stop(word: str, reason: str, code: int) -> NoReturn:
    """End with a code other than DONE, and the reason."""
    tell(word, reason)
    raise typer.Exit(code)


def writable(path: Path | None) -> Path | None:
    """For options that say where a file goes: refused before any work is done."""
    if path is not None:
        check_target(path)
    return path


def apart(targets: Iterable[Path | None], sources: Iterable[Path]) -> None:
    """Raises FileError for a target that would take the place of a source or of another target."""
    taken = {os.path.realpath(source) for source in sources}
    for path in targets:
        if path is None or (os.path.exists(path) and not os.path.isfile(path)):
            continue
        if (place := os.path.realpath(path)) in taken:
            raise FileError(f"cannot write {path}: it would be lost: choose another place")
        taken.add(place)


def print_json(value: dict[str, Any]) -> None:
    """The one object that --json leaves on stdout."""
    json.dump(value, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")


@contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Progress]:
    """A bar on stderr while something long runs; advance its first task. Gone afterwards."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    bar.add_task(what, total=total)
    with bar:
        yield bar
