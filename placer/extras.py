"""What a part of placer needs that is not installed, and the command that installs it."""

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires

from placer.errors import PlacerError

PACKAGE = "moe-placer"
# Of extras that users ask for, the smaller ones first.
NAMES = ("plan", "tokenizer", "operator", "controller", "ray", "picker")


class MissingError(PlacerError):
    """A library of an extra is not installed."""

    def __init__(self, what: str, extra: str, library: str | None) -> None:
        """what: asks for it, such as a verb; library: its name, if it is known"""
        super().__init__(f"{what} needs {library or extra}: {command(extra)}")


def command(extra: str) -> str:
    """Installs what this extra needs beside placer, wherever placer itself was installed from."""
    return f"pip install {shlex.join(_needed(extra) or [f'.[{extra}]'])}"


def of(module: str) -> str | None:
    """The extra that brings a library, by the name that it is imported by; None if none does."""
    return next((extra for extra in NAMES if _brings(extra, module)), None)


def _brings(extra: str, module: str) -> bool:
    library = module.partition(".")[0]
    return any(re.fullmatch(rf"{library}\b.*", one) for one in _needed(extra))


def _needed(extra: str) -> list[str]:
    """Its requirements, those of another extra of placer's spelled out."""
    try:
        every = requires(PACKAGE) or []
    except PackageNotFoundError:  # run from its sources
        every = []
    mine = re.compile(rf"(.*?)\s*;.*extra == ['\"]{extra}['\"]")
    found = [match[1] for one in every if (match := mine.fullmatch(one))]
    needed: list[str] = []
    for one in found:
        other = re.fullmatch(rf"{PACKAGE}\[(\w+)\]", one)
        needed += _needed(other[1]) if other else [one]
    return needed
