"""Requests beside a change of width: the modelled engine of simulations/, from 3 to 4 ranks."""

from dataclasses import dataclass
from pathlib import Path

from simulations.modelled import PoolModel
from simulations.papers.elasticmoe.ways import WIDE, placed
from simulations.scenario import Scenario

ENGINE = Path(__file__).with_name("engine.yaml")
BEGINS_S, SPAN_S, AROUND_S = 90.0, 30.0, 5.0  # of the change; of a measurement; before and after it


@dataclass(frozen=True, slots=True)
class Change:
    """ready_s: seconds until the new width serves; serves: the old one does until then; replica: an
    engine of the old width comes instead of a wider one"""

    ready_s: float
    serves: bool = True
    replica: bool = False


def throughputs(change: Change, longest_s: float, seed: int) -> tuple[float, float]:
    """Requests a second in the longest change's time and 5 s before and after it, and after the
    change; in times of before."""
    pool = Scenario(ENGINE).world("none", seed).pools["chat"]
    pool.close(1, is_lost=False)
    moments = _Moments(pool)
    before = moments.rate(BEGINS_S - AROUND_S - SPAN_S, BEGINS_S - AROUND_S)
    begun = moments.finished(BEGINS_S - AROUND_S)
    moments.finished(BEGINS_S)
    if not change.serves:
        pool.close(0, is_lost=True)
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
    """Of virtual time, which only goes on."""

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
