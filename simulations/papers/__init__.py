"""What papers and engines published, beside what the code that ships comes to in their settings.

One module a paper: ``tables(seeds, data)`` makes the setting, drawn from so many seeds or, of the
folder ``data``, recorded, and returns Tables. No figure of ours is written down anywhere.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from placer.errors import PlacerError
from placer.names import lookup
from simulations.papers.table import Table

SEEDS = 10
PAPERS: dict[str, str] = {
    name: f"simulations.papers.{name}"
    for name in ("moetuner", "exflow", "eplb", "overlap", "elasticmoe", "semmoe", "eldr")
}


def tables(name: str, seeds: int = SEEDS, data: Path | None = None) -> Sequence[Table]:
    """Raises PlacerError with the nearest name."""
    module = import_module(lookup("paper", name, PAPERS, PlacerError))
    found: Sequence[Table] = module.tables(seeds, data)
    return found
