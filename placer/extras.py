"""What a part of placer needs that is not installed, and the command that installs it."""

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires

from placer.errors import PlacerError

PACKAGE = "moe-placer"


class MissingError(PlacerError):
    """A library of an extra is not installed."""

    def __init__(self, what: str, extra: str, library: str | None) -> None:
        """what: asks for it, such as a verb; library: its name, if it is known"""
        super().__init__(f"{what} needs {library or extra}: {command(extra)}")


def command(extra: str) -> str:
    """Installs what this extra needs beside placer, wherever placer itself was installed from."""
    try:
        every = requires(PACKAGE) or []
    except PackageNotFoundError:  # run from its sources
        every = []
    mine = re.compile(rf"(.*?)\s*;.*extra == ['\"]{extra}['\"]")
    needed = [found[1] for one in every if (found := mine.fullmatch(one))]
    return f"pip install {shlex.join(needed or [f'.[{extra}]'])}"
