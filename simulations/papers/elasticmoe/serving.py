"""Requests beside a change of width: the modelled engine of simulations/, from 3 to 4 ranks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulations.modelled import PoolModel
from simulations.papers.elasticmoe.ways import ALL_OF_IT, NARROW, RESTART, WIDE, placed, seconds
from simulations.papers.table import Row, Table
from simulations.scenario import Scenario

ENGINE = Path(__file__).with_name("engine.yaml")
BEGINS_S, SPAN_S, AROUND_S = 90.0, 30.0, 5.0  # of the change; of a measurement; before and after it
ABOUT = (
    "The same engine with more requests than it can serve, 500 tokens in and 375 out in the mean: "
    "requests a second while the longest change lasts and 5 s around it, and after it, in times of "
    "before."
)
WHY_PAUSE = (
    "The paper pauses the intake while it scales; here sequences are handed over with their KV."
)
WHY_WINDOW = (
    "A restart serves nothing until it is ready; how much of it the paper's window shows is "
    "not said."
)
WHY_TWO = "The engine model has no two copies that share devices."


@dataclass(frozen=True, slots=True)
class Change:
    """ready_s: seconds until the new width serves; serves: the old one does until then; replica: an
    engine of the old width comes instead of a wider one"""

    ready_s: float
    serves: bool = True
    replica: bool = False


def beside(seeds: int) -> Table:
    elastic_s, restart_s = (seconds(way, NARROW, WIDE) for way in (ALL_OF_IT, RESTART))
    replica_s = seconds(RESTART, NARROW, NARROW)
    cases = {
        "elastic": (Change(elastic_s), (3.943 / 6.002, 7.818 / 6.002)),
        "cold restart": (Change(restart_s, serves=False), (2.064 / 6.002, 7.818 / 6.002)),
        "extravagant": (Change(restart_s), ()),
        "horizontal": (Change(replica_s, replica=True), ()),
    }
    why = {"elastic, during": WHY_PAUSE, "cold restart, during": WHY_WINDOW}
    rows = []
    for name, (one, published) in cases.items():
        some = [throughputs(one, restart_s, seed) for seed in range(seeds)]
        for at, when in enumerate(("during", "after")):
            ours, what = float(np.mean(some, axis=0)[at]), f"{name}, {when}"
            told = published[at : at + 1]
            rows.append(Row(what, told, ours, "predicted", "{:.2f}x", why.get(what, "")))
    for when, figure in (("during", 0.467 / 1.338), ("after", 2.268 / 1.338)):
        rows.append(Row(f"colocated, {when}", (figure,), None, "predicted", "{:.2f}x", WHY_TWO))
    return Table("ElasticMoE, throughput beside a change", ABOUT, rows)


def throughputs(change: Change, longest_s: float, seed: int) -> tuple[float, float]:
    """Requests a second in the longest change's time and 5 s before and after it, and after the
    change; in times of before."""
    pool = Scenario(ENGINE).world("none", seed).pools["chat"]
    pool.close(1)
    moments = _Moments(pool)
    before = moments.rate(BEGINS_S - AROUND_S - SPAN_S, BEGINS_S - AROUND_S)
    begun = moments.finished(BEGINS_S - AROUND_S)
    moments.finished(BEGINS_S)
    if not change.serves:
        pool.lose(0)
    moments.finished(BEGINS_S + change.ready_s)
    if change.replica:
        pool.open(1)
    else:
        pool.engines["engine-0"].placement = placed(WIDE)
        pool.changed() if change.serves else pool.open(0)
    end_s = BEGINS_S + longest_s + AROUND_S
    during = (moments.finished(end_s) - begun) / (longest_s + 2 * AROUND_S)
    after = moments.rate(end_s + SPAN_S, end_s + 2 * SPAN_S)
    return during / before, after / before


class _Moments:
    """Moments of virtual time, which only goes on."""

    def __init__(self, pool: PoolModel) -> None:
        self._pool, self._now_s = pool, 0.0

    def finished(self, at_s: float) -> int:
        """Requests until then."""
        while self._now_s < at_s:
            self._now_s = min(self._now_s + 1.0, at_s)
            self._pool.advance(self._now_s)
        return int(self._pool.serving.state.finished.sum())

    def rate(self, begin_s: float, end_s: float) -> float:
        """Requests a second."""
        return -(self.finished(begin_s) - self.finished(end_s)) / (end_s - begin_s)
