"""Sem-MoE (arXiv 2503.04398): how many activations find their expert where their token is (LAR)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from placer.prediction.alignment import shuffle
from placer.tables import counted, tables_of
from simulations.papers.table import Row, Table
from simulations.streams.local_rate import Case, case, rates
from simulations.streams.step import at_once, both
from simulations.streams.worlds import World, worlds

GPUS, PLAN = 4, "cocluster"
WITHOUT, PUBLISHED = (0.25,), (0.465,)
SPEED_UP = (0.11, 2.78)
STEP_TOKENS = 8192
WHY_TOKENS = "The published 46.5% are of tokens, layer by layer: below."
WHY_PAPER = "Its round mask takes requests in turns, so that the best rank is often taken."
WHY_STEP = (
    "Ours is of the MoE layers and no SLO, over the default plan, which has most of the gain; the "
    "published gain is over engines without any of it."
)


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    return [table(world, seeds) for world in worlds(data)]


def table(world: World, seeds: int) -> Table:
    cases = [case(world, GPUS, PLAN, 0, seed) for seed in range(seeds)]
    found = [rates(one) for one in cases]

    def mean(name: str) -> float:
        return float(np.mean([one[name] for one in found])) / GPUS

    rows = [
        Row("requests to the least loaded", WITHOUT, mean("least_loaded"), "measured", "{:.1%}"),
        Row("requests by its round mask", (), mean("round_mask"), "measured", "{:.1%}", WHY_PAPER),
        Row("requests by placer's own", (), mean("seconds"), "measured", "{:.1%}", WHY_TOKENS),
        Row("requests, all at once", (), mean("table, offline"), "measured", "{:.1%}"),
    ]
    if not world.decodes:  # what is known of a token is its own id
        wished, aligned = np.mean([by_token(one) for one in cases], axis=0)
        rows += [
            Row("tokens, layer by layer", PUBLISHED, float(wished), "measured", "{:.1%}"),
            Row("tokens, in equal chunks", PUBLISHED, float(aligned), "measured", "{:.1%}"),
        ]
    rows += list(steps(world, seeds))
    about = (
        f"{world.name}, {world.shape.dims}, on {GPUS} GPUs: tables and {PLAN}'s plans from half of "
        "the recorded requests, activations at home on the others."
    )
    return Table(f"Sem-MoE, {world.name}", about, rows)


def by_token(one: Case) -> tuple[float, float]:
    """LAR where the tables place each token at each layer, as they wish and in equal chunks
    (tensor-parallel attention)."""
    tables = tables_of(counted(one.fit.served, one.placement), one.world.shape)
    found = shuffle(one.judged.served, tables, STEP_TOKENS)
    return float(found.wished.mean()), float(found.aligned.mean())


def steps(world: World, seeds: int) -> Iterator[Row]:
    """Seconds of the MoE layers, joint with the least loaded over joint with homes by tables."""
    some = [at_once(*one) for one in both(world, GPUS, "joint+homes", seeds, False)]
    faster = float(np.mean([plain.step_s / ours.step_s for plain, ours in some])) - 1
    yield Row("throughput, published within an SLO", SPEED_UP, faster, "predicted", why=WHY_STEP)
