"""ElasticMoE (arXiv 2510.02613): another width while requests are served, and four ways to do
without."""

from collections.abc import Sequence
from pathlib import Path

from simulations.papers.elasticmoe.costs import baselines, ladder
from simulations.papers.elasticmoe.serving import beside
from simulations.papers.elasticmoe.slo import kept
from simulations.papers.table import Table


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    return [ladder(), baselines(), beside(seeds), kept(seeds)]
