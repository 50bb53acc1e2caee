"""What homes in the objective win: plans made from half of the sequences, judged on the others.

Of each world, optimizer and number of GPUs: LAR in times of 1 / GPUs, remote GPUs a token, balance
and step time, mean over the splits with standard errors; ratios are to joint's placement with every
request at home with the least loaded. What is known of a request that is judged is its prompt.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from rich.table import Table

from bench.matrix import DATA
from bench.timing import console
from placer.arrays import IntArray
from placer.cost import score, traffic
from placer.cost.homes import chosen, homes
from placer.cost.owned import foreseen, peak
from placer.optimizers.cocluster import cocluster, votes
from placer.optimizers.eldr import signatures, zones
from placer.placement import Placement
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.tables import device_tables, local_activation_rate, token_table
from simulations.streams.worlds import SPLITS, Requests, World, worlds

GPUS = (4, 8)
NAMES = ("joint", "joint, scheduled", "joint, homes", "cocluster", "eldr")


@dataclass(frozen=True)
class Figures:
    lar: float
    remote: float
    balance: float
    step_s: float


def run() -> None:
    for world in worlds(DATA):
        for gpus in GPUS:
            for redundant in (0, -(-world.shape.experts // 4 // gpus) * gpus):
                console.print(_table(world, gpus, redundant))


def _table(world: World, gpus: int, redundant: int) -> Table:
    table = Table(
        title=f"{world.name} on {gpus} GPUs, {redundant} redundant slots, {SPLITS} splits"
    )
    for name in ("", "LAR x", "remote", "ratio", "balance", "less", "step, ms", "ratio"):
        table.add_column(name, justify="right")
    splits = [dict(_judged(world, gpus, redundant, seed)) for seed in range(SPLITS)]
    for name in NAMES:
        rows = [split[name] for split in splits if name in split]
        if not rows:
            continue
        base = [split["joint"] for split in splits]
        lar = [row.lar * gpus for row in rows]
        remote, balance, step = ([getattr(row, what) for row in rows]
                                 for what in ("remote", "balance", "step_s"))  # fmt: skip
        table.add_row(
            name,
            _mean(lar),
            f"{np.mean(remote):.3f}",
            _mean([one.remote / was.remote for one, was in zip(rows, base, strict=True)]),
            f"{np.mean(balance):.3f}",
            _mean([one.balance - was.balance for one, was in zip(rows, base, strict=True)]),
            f"{np.mean(step) * 1e3:.3f}",
            _mean([one.step_s / was.step_s for one, was in zip(rows, base, strict=True)]),
        )
    return table


def _mean(values: list[float]) -> str:
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ({error:.3f})"


def _judged(world: World, gpus: int, redundant: int, seed: int) -> Iterator[tuple[str, Figures]]:
    fit, judged = world.halves(seed)
    clustered = world.problem(fit.served, gpus, redundant, clustered=True)
    problem = replace(clustered, profile=replace(clustered.profile, clusters=None))

    def figures(placement: Placement, own: IntArray) -> Figures:
        return _figures(problem, placement, judged, own)

    least = homes(judged.served.seq_lens, gpus)
    plain = _placed(problem, "joint")
    yield "joint", figures(plain, least)
    yield "joint, scheduled", figures(plain, by_visits(problem, fit, judged, plain))
    together = _placed(clustered, "joint")
    yield "joint, homes", figures(together, by_visits(problem, fit, judged, together))
    if redundant == 0:
        _, best = cocluster(problem)
        placement = problem.partition(best.experts)
        yield "cocluster", figures(placement, by_activations(fit, judged, placement))
    placement = _placed(problem, "eldr")
    zone, _ = zones(fit.served, gpus)
    foretold = signatures(_foretold(fit, judged))
    yield "eldr", figures(placement, zone.homes(foretold, judged.served.seq_lens))


def by_visits(problem: Problem, fit: Requests, judged: Requests, placement: Placement) -> IntArray:
    """[sequences] homes that save most visits, as foreseen from the prompts; offline."""
    gain = foreseen(fit.served, placement, judged.known, judged.prompts)
    lens = judged.served.seq_lens
    most = peak(problem.profile, placement)
    return chosen(gain / judged.prompts[:, None] * lens[:, None], lens, most)


def by_activations(fit: Requests, judged: Requests, placement: Placement) -> IntArray:
    """[sequences] homes with most activations, as foreseen from the prompts; offline."""
    tables = device_tables(fit.served, placement)
    gain = tables.request_scores(judged.known, judged.prompts)
    lens = judged.served.seq_lens
    return chosen(gain / judged.prompts[:, None] * lens[:, None], lens, np.inf)


def by_votes(fit: Requests, judged: Requests, requests: IntArray, gpus: int) -> IntArray:
    """[sequences] homes that most of the prompt's tokens vote for (Sem-MoE); offline."""
    table = votes(fit.served, requests, gpus)
    gain = table.of_requests(judged.known, judged.prompts, gpus)
    lens = judged.served.seq_lens
    return chosen(gain / judged.prompts[:, None] * lens[:, None], lens, np.inf)


def _foretold(fit: Requests, judged: Requests) -> np.ndarray:
    """[sequences, layers, experts] the experts of a prompt's tokens, as foreseen."""
    table = token_table(fit.served)
    starts = np.cumsum(judged.prompts) - judged.prompts
    layers = [
        np.add.reduceat(table.probability(judged.known, layer), starts, axis=0)
        for layer in range(fit.served.layers)
    ]
    return np.stack(layers, axis=1)


def _placed(problem: Problem, name: str) -> Placement:
    solution = solve(problem, name)
    assert isinstance(solution, Solution)
    return solution.placement


def _figures(problem: Problem, placement: Placement, judged: Requests, own: IntArray) -> Figures:
    trace = judged.served
    found = score(problem, placement, trace, homes=own)
    sent = traffic.measured(trace, placement, "dedup", own).dispatch.gpu
    remote = sent.sum() - np.trace(sent, axis1=1, axis2=2).sum()
    return Figures(
        local_activation_rate(trace, placement, np.repeat(own, trace.seq_lens)),
        float(remote / trace.tokens / trace.layers),
        found.balancedness,
        found.step_s,
    )
