"""Four engines of a pool that decode, each of which holds all experts: how many distinct experts an
engine reads a layer and step, and what a token takes for it: the experts that its engine's steps
read, what is no expert, and OVERHEAD_S."""

from dataclasses import dataclass

import numpy as np

from controller.router.scheduling.baselines import similarity
from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Decision
from controller.router.scheduling.scheduler import Scheduler
from placer.arrays import BoolArray
from placer.cost.requests import costs_of
from placer.tables.answers import further
from placer.tables.factors import factors
from simulations.streams.centroids import centroids
from simulations.streams.chosen import asked, drawn
from simulations.streams.worlds import Requests, World, answered, table_of

ENGINES, RUNNING, STREAM, WARM_UP = 4, 16, 1500, 300
OVERHEAD_S = 0.004  # of a step: launches, sampling, the scheduler
# Of ELDR also bands so wide that its engines get about as many tokens.
SCHEDULES = (
    ("least_loaded", 0.0),
    ("eldr", 0.05),
    ("eldr", 0.1),
    ("eldr", 0.2),
    ("eldr", 0.3),
    ("seconds", 0.0),
)


@dataclass
class _Run:
    """at: the sequence; token: the next that it decodes; took_s: so far"""

    at: int
    token: int
    decision: Decision
    took_s: float = 0.0


@dataclass(frozen=True)
class Decoded:
    """distinct: experts an engine, layer and step; tokens: of the engine with most over the mean;
    batch: the largest batch over the mean, mean over steps; tpot_s: median of requests"""

    distinct: float
    tokens: float
    batch: float
    tpot_s: float


def decoded(world: World, name: str, band: float, seed: int) -> Decoded:
    """Steps with ``RUNNING`` requests an engine in the mean: when one ends, the next comes."""
    fit, judged = world.halves(seed)
    scheduler = _scheduler(world, fit, name, band, seed)
    hardware, read_s = world.problem(fit.served, 1).topology.gpu, scheduler.prices.costs.read_s
    same_s = OVERHEAD_S + world.shape.other_bytes / hardware.hbm_bytes_per_s
    tpot_s = []
    trace = judged.served
    starts = np.cumsum(trace.seq_lens) - trace.seq_lens
    order = iter(drawn(STREAM, trace.sequences, seed).tolist())
    every = [asked(judged, at, True) for at in range(trace.sequences)]
    live: list[_Run] = []
    places = {f"engine-{index}": index for index in range(ENGINES)}
    distinct, batches = [], []
    tokens = np.zeros(ENGINES)
    while True:
        while len(live) < ENGINES * RUNNING:
            if (at := next(order, None)) is None:
                break
            live.append(_Run(at, 0, scheduler.choose(every[at])))
        if len(live) < ENGINES * RUNNING:  # the stream is over
            break
        engine = np.array([places[run.decision.engine] for run in live])
        routed = trace.expert_ids[[starts[run.at] + run.token for run in live]]
        used: BoolArray = np.zeros((ENGINES, trace.layers, trace.experts), dtype=np.bool_)
        used[engine[:, None, None], np.arange(trace.layers)[:, None], routed] = True
        distinct.append(used.sum() / (ENGINES * trace.layers))
        step_s = same_s + used.sum(axis=(1, 2)) * read_s
        size = np.bincount(engine, minlength=ENGINES)
        batches.append(size.max() / RUNNING)
        tokens += size
        kept = []
        for run, at in zip(live, engine.tolist(), strict=True):
            if run.token == 0:
                scheduler.began(run.decision)
            run.token, run.took_s = run.token + 1, run.took_s + step_s[at]
            scheduler.generated(run.decision, 1)
            if run.token == trace.seq_lens[run.at]:
                scheduler.ended(run.decision)
                tpot_s.append(run.took_s / run.token)
            else:
                kept.append(run)
        live = kept
    settled = slice(WARM_UP, None)
    return Decoded(
        float(np.mean(distinct[settled])),
        float(tokens.max() / tokens.mean()),
        float(np.mean(batches[settled])),
        float(np.median(tpot_s)),
    )


def _scheduler(world: World, fit: Requests, name: str, band: float, seed: int) -> Scheduler:
    table, problem = table_of(fit), world.problem(fit.served, 1)
    if name == "eldr":
        found = similarity(table, centroids(fit.served, ENGINES, seed))
        columns = [found[:, [one]] for one in range(ENGINES)]
        tables = Lookup.of(table.vocabulary, columns)
    else:
        alike = np.ones((len(table.times), 1))
        used = factors(table)
        used = used._replace(further=further(table, used, answered(fit)))
        tables = Lookup.of(table.vocabulary, [alike] * ENGINES, used)
    engines = [Engine(f"engine-{one}", 1, table=one) for one in range(ENGINES)]
    return Scheduler(engines, costs_of(problem)._replace(band=band), tables, name)
