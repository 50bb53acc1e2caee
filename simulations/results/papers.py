"""Papers' tables as parts of the page."""

from collections.abc import Sequence
from pathlib import Path

from simulations.papers import tables
from simulations.papers.table import Row, Table
from simulations.results.pictures import Figure, bars, lines
from simulations.results.section import Section

COLUMNS = ("figure", "published", "ours", "how", "why they differ")
FEWEST = 2  # bars that are worth a picture


def of_paper(name: str, seeds: int, data: Path | None) -> Sequence[Section]:
    command = f"python -m simulations.papers {name} --seeds {seeds}"
    if data is not None:
        command += " --data DATA"
    return [of_table(table, command) for table in tables(name, seeds, data)]


def of_table(table: Table, command: str) -> Section:
    rows = [(row.what, *row.told, row.how, row.why) for row in table.rows]
    how = ", ".join(sorted({row.how for row in table.rows}))
    return Section(table.title, table.about, command, how, COLUMNS, rows, _figure(table))


def _figure(table: Table) -> Figure | None:
    """Its curves, or what has both figures, in the form that most have."""
    if (curves := table.curves) is not None:
        return lines(table.title, {curves.up: curves.lines}, curves.across)
    both = [row for row in table.rows if row.published and row.ours is not None]
    forms = [row.form for row in both]
    shown = [row for row in both if row.form == max(forms, key=forms.count)]
    if len(shown) < FEWEST:
        return None
    values = {"published": [_middle(row) for row in shown], "ours": [_ours(row) for row in shown]}
    return bars(table.title, [row.what for row in shown], values, shown[0].form)


def _middle(row: Row) -> float:
    return sum(row.published) / len(row.published)


def _ours(row: Row) -> float:
    return row.ours or 0.0
