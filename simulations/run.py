"""A shipped rule for sizes looks after a modelled pool, in virtual time."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from controller.config import PoolPolicy
from controller.fleet.signals import SignalWindow
from controller.policies.autoscale import autoscale
from controller.policies.policy import Decision, Past, Scaling, Seen, Size
from controller.samples import Sample
from controller.size_settings import Autoscale
from placer.plan import Hold
from placer.topology import preset
from placer.virtual_clock import VirtualClock
from simulations.arrivals import Arrivals
from simulations.pool import PoolModel, Rank

Decide = Callable[[Seen, PoolModel], Decision]  # rules look at the first alone


@dataclass(frozen=True, slots=True)
class Outcome:
    """attainment: share of requests that kept to both objectives; rank_s: allocated; changes: of
    width; widest: ranks; finished: requests"""

    attainment: float
    rank_s: float
    changes: int
    widest: int
    finished: int


def by_policy(seen: Seen, pool: PoolModel) -> Decision:
    """As the loop asks."""
    decision = autoscale(seen)
    assert decision is not None
    return decision


def simulate(
    arrivals: Arrivals,
    settings: Autoscale,
    delay_s: float,
    rank: Rank = Rank(),
    decide: Decide = by_policy,
    ranks: int = 0,
) -> Outcome:
    """From the first request until all have finished. Allocation is counted until the last comes.

    delay_s: from a decision to the width that serves; ranks: at the beginning, ``least`` if 0
    """
    clock = VirtualClock()
    world = _World(arrivals, settings, delay_s, rank, decide, ranks or settings.least, clock)
    return clock.run(world.run())


class _World:
    def __init__(
        self,
        arrivals: Arrivals,
        settings: Autoscale,
        delay_s: float,
        rank: Rank,
        decide: Decide,
        ranks: int,
        clock: VirtualClock,
    ) -> None:
        self.arrivals, self.settings, self.delay_s, self.clock = arrivals, settings, delay_s, clock
        self.policy = PoolPolicy(preset("h100"), mode="automatic", autoscale=settings)
        self.pool, self.decide = PoolModel(arrivals, ranks, rank), decide
        back_s = max(settings.window_s, settings.ttft_s) + settings.ttft_s
        self.window = SignalWindow(back_s, settings.tpot_s)
        self.changes, self.widest, self.rank_s = 0, ranks, 0.0
        self._wishes: list[tuple[float, int]] = []
        self._ended_s = -inf
        self._due_s, self._target = inf, ranks  # of the change that is at work

    async def run(self) -> Outcome:
        end_s, look_s = self.arrivals.seconds, self.settings.every_s
        while self.pool.finished < len(self.arrivals):
            now_s = self.clock.monotonic()
            next_s = min(self._due_s, (now_s // look_s + 1) * look_s)
            await self.clock.sleep(next_s - now_s)
            self.pool.advance(next_s)
            if now_s < end_s:
                allocated = max(self.pool.ranks, self._target)
                self.rank_s += allocated * (min(next_s, end_s) - now_s)
            if next_s >= self._due_s:
                self.pool.resize(self._target)
                self._ended_s, self._due_s = next_s, inf
            if next_s % look_s == 0:
                self.look(next_s)
        found = self.pool.attainment(self.settings.ttft_s, self.settings.tpot_s)
        return Outcome(found, self.rank_s, self.changes, self.widest, self.pool.finished)

    def look(self, now_s: float) -> None:
        pool = self.pool
        self.window.add(now_s, pool.ranks, {"engine": sample(pool)})
        signals = self.window.signals
        assert signals is not None
        self._wishes = [
            one for one in self._wishes if one[0] >= now_s - self.settings.stabilisation_s
        ]
        if self._due_s < inf:
            return
        scaling = Scaling(
            signals,
            Size(pool.ranks),
            self.window.full_rate,
            resize_s=self.delay_s,
            rested_s=None if self._ended_s == -inf else now_s - self._ended_s,
            wishes=tuple((now_s - at_s, gpus) for at_s, gpus in self._wishes),
        )
        seen = Seen(Hold("nothing is planned here"), Past(), self.policy, now_s, scaling)
        decision = self.decide(seen, pool)
        self._wishes.append((now_s, decision.wish))
        if decision.outcome == "act" and decision.size is not None:
            self._target, self._due_s = decision.size.ranks, now_s + self.delay_s
            self.changes, self.widest = self.changes + 1, max(self.widest, self._target)


def sample(pool: PoolModel) -> Sample:
    """What vLLM's /metrics would say."""
    return Sample(
        ttft=pool.ttft,
        gaps=pool.gaps,
        running=pool.running,
        waiting=pool.waiting,
        kv_use=pool.kv_use,
        finished=pool.finished,
        finished_prompt_tokens=pool.finished_prompt_tokens,
        prompt_tokens=pool.prompt_tokens,
        output_tokens=pool.output_tokens,
    )
