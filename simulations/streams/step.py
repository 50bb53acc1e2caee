"""What counts: traffic, balance and the step's time by placer's own score, over joint's plan with
requests at home with the least loaded. All at once, of requests whose lengths are known; and as
they come, one after another, of those that are under way together."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import numpy as np

from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.scheduler import Scheduler
from placer.arrays import IntArray
from placer.cost import score, traffic
from placer.cost.homes import chosen
from placer.cost.owned import peak
from placer.cost.requests import costs_of
from placer.tables.owning import visits
from placer.trace import Trace
from simulations.streams.chosen import drawn, foreseen, streamed
from simulations.streams.local_rate import STREAM, WINDOW, Case, cases
from simulations.streams.worlds import World

UNDER_WAY = (WINDOW, 64)  # requests a rank that are under way together
MOMENTS = 8  # of a stream's end, whose steps are judged


@dataclass(frozen=True)
class Figures:
    """remote: GPUs a token is sent to, but for its home; step_s: of the MoE layers"""

    remote: float
    balance: float
    step_s: float


# Of joint with the least loaded, and of the plan with homes.
Cases = tuple[Case, Case]
Pair = tuple[Figures, Figures]


def figures(case: Case, trace: Trace, homes: IntArray | None) -> Figures:
    """With these homes [sequences]; None: with the least loaded."""
    placement = case.placement
    found = score(case.problem, placement, trace, homes=homes)
    sent = traffic.measured(trace, placement, "dedup", homes).dispatch.gpu
    away = sent.sum() - sent.trace(axis1=1, axis2=2).sum()
    remote = float(away / (trace.tokens * trace.layers))
    return Figures(remote, found.balancedness, found.step_s)


def offline(case: Case) -> Figures:
    trace = case.judged.served
    gain = foreseen(case.table, visits(case.table, case.placement), case.judged)
    most = peak(case.problem.profile, case.placement)
    return figures(case, trace, chosen(gain, trace.seq_lens, most))


def online(case: Case, name: str, a_rank: int) -> Figures:
    """Of a stream's last moments, each with so many requests a rank under way: their mean."""
    trace, running = case.judged.served, a_rank * case.gpus
    apart = running + case.gpus  # another phase of the scheduler's own windows each time
    count = max(STREAM, running + MOMENTS * apart)
    order = drawn(count, trace.sequences, case.seed)
    owning = Lookup.of(case.table.vocabulary, [visits(case.table, case.placement)])
    costs = costs_of(case.problem)
    scheduler = Scheduler([Engine("engine", case.gpus)], costs, owning, name)
    rank = streamed(scheduler, case.judged, order, case.world.decodes, running).rank
    found = []
    for end in range(count, count - MOMENTS * apart, -apart):
        some = slice(end - running, end)
        found.append(astuple(figures(case, _taken(trace, order[some]), rank[some])))
    return Figures(*np.mean(found, axis=0).tolist())


def _taken(trace: Trace, order: IntArray) -> Trace:
    """These sequences, in this order."""
    starts = np.cumsum(trace.seq_lens) - trace.seq_lens
    tokens = [np.arange(starts[at], starts[at] + trace.seq_lens[at]) for at in order.tolist()]
    ids = trace.expert_ids[np.concatenate(tokens)]
    return replace(
        trace, expert_ids=ids, seq_lens=trace.seq_lens[order], token_ids=None, gates=None
    )


def both(world: World, gpus: int, plan: str, splits: int, quarter: bool) -> Iterator[Cases]:
    redundant = gpus * -(-world.shape.experts // 4 // gpus) if quarter else 0
    return zip(
        cases(world, gpus, "joint", splits, redundant),
        cases(world, gpus, plan, splits, redundant),
        strict=True,
    )


def at_once(plain: Case, ours: Case) -> Pair:
    return figures(plain, plain.judged.served, None), offline(ours)


def as_they_come(plain: Case, ours: Case, a_rank: int) -> Pair:
    return online(plain, "least_loaded", a_rank), online(ours, "seconds", a_rank)
