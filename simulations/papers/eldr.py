"""ELDR (arXiv 2607.00466): requests go to the engine whose requests use the same experts, so that
its decode steps read fewer of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simulations.papers.table import Row, Table
from simulations.streams.engines import ENGINES, RUNNING, decoded
from simulations.streams.worlds import World, worlds

PUBLISHED = (-0.139, -0.059)  # of the median TPOT
SCHEDULES = {
    "eldr, band 5%": ("eldr", 0.05),
    "eldr, band 20%": ("eldr", 0.2),
    "placer's scheduler": ("seconds", 0.0),
}
WHY = (
    "16 requests use most of the few experts here whoever they are, and of engines that share "
    "requests unevenly the fuller ones read as many as before."
)


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    return [table(world, seeds) for world in worlds(data)]


def table(world: World, seeds: int) -> Table:
    least = [decoded(world, "least_loaded", 0.0, seed) for seed in range(seeds)]
    rows = []
    for what, (name, band) in SCHEDULES.items():
        some = [decoded(world, name, band, seed) for seed in range(seeds)]
        pairs = list(zip(some, least, strict=True))
        tpot, read, batch = (
            float(np.mean([getattr(ours, of) / getattr(rival, of) for ours, rival in pairs])) - 1
            for of in ("tpot_s", "distinct", "batch")
        )
        published = PUBLISHED if name == "eldr" else ()
        is_as_published = PUBLISHED[0] <= tpot <= PUBLISHED[1]
        why = WHY if published and not is_as_published else ""
        rows += [
            Row(f"{what}: median TPOT", published, tpot, "predicted", why=why),
            Row(f"{what}: experts read a step", (), read, "measured"),
            Row(f"{what}: the largest batch", (), batch, "measured"),
        ]
    about = (
        f"{world.name}: {ENGINES} engines of one h100 each that hold all experts and decode "
        f"{RUNNING} requests each in the mean; tables and centroids from half of the requests, "
        "judged on the others, against the least loaded."
    )
    if not world.decodes:
        about += " Tokens of prompts stand for generated ones."
    return Table(f"ELDR, {world.name}", about, rows)
