"""A part of the page: a table, its picture, and what made both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Section:
    """command: makes it alone; how: predicted, calibrated or measured, in words
    rows:   cells by column, in Markdown
    figure: for Plotly; None: there is nothing to draw
    """

    title: str
    about: str
    command: str
    how: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figure: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """The name of its picture."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def markdown(section: Section, picture: str | None) -> str:
    """picture: where it is, if it was drawn"""
    lines = [f"### {section.title}", "", section.about, ""]
    lines += [f"`{section.command}` ({section.how})", ""]
    for cells in (section.columns, ["---"] * len(section.columns), *section.rows):
        lines.append(f"| {' | '.join(one.replace('|', '/') for one in cells)} |")
    if picture is not None:
        lines += ["", f"![{section.title}]({picture})", ""]
        lines += [f"*{section.title}, {section.how}: `{section.command}`*"]
    for note in section.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"
