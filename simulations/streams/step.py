"""What counts: traffic, balance and the step's time by placer's own score, over joint's plan with
requests at home with the least loaded."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from placer.arrays import IntArray
from placer.cost import score, traffic
from placer.cost.homes import chosen
from placer.tables.owning import local
from simulations.streams.chosen import drawn, foreseen, streamed
from simulations.streams.local_rate import STREAM, WINDOW, Case, cases
from simulations.streams.worlds import World


@dataclass(frozen=True)
class Figures:
    """remote: GPUs a token is sent to, but for its home; step_s: of the MoE layers"""

    remote: float
    balance: float
    step_s: float


def figures(case: Case, homes: IntArray | None) -> Figures:
    """Of the judged half, with these homes [sequences]; None: with the least loaded."""
    trace, placement = case.judged.served, case.placement
    found = score(case.problem, placement, trace, homes=homes)
    sent = traffic.measured(trace, placement, "dedup", homes).dispatch.gpu
    away = sent.sum() - sent.trace(axis1=1, axis2=2).sum()
    remote = float(away / (trace.tokens * trace.layers))
    return Figures(remote, found.balancedness, found.step_s)


def offline(case: Case) -> IntArray:
    gain = foreseen(case.table, local(case.table, case.placement), case.judged)
    return chosen(gain, case.judged.served.seq_lens)


def online(case: Case) -> IntArray:
    """Homes of all sequences, one after another, after a stream of them went before."""
    count = case.judged.served.sequences
    order = np.append(drawn(STREAM, count, case.seed), np.arange(count))
    running = WINDOW * case.gpus
    stream = streamed(case.scheduler("seconds"), case.judged, order, case.world.decodes, running)
    return stream.rank[STREAM:]


def compared(
    world: World, gpus: int, plan: str, splits: int, quarter: bool
) -> Iterator[tuple[Figures, Figures, Figures]]:
    """By split: joint with the least loaded; the plan with homes by tables, offline and online."""
    redundant = gpus * -(-world.shape.experts // 4 // gpus) if quarter else 0
    pairs = zip(
        cases(world, gpus, "joint", splits, redundant),
        cases(world, gpus, plan, splits, redundant),
        strict=True,
    )
    for plain, ours in pairs:
        yield figures(plain, None), figures(ours, offline(ours)), figures(ours, online(ours))
