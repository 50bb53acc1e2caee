"""How often what-if recommends to know traffic in which there is nothing to know.

A router that chooses every expert alike, of other tokens for each seed, swept over widths and
redundancies; as a trace, half of it held out, as its profile, and as loads alone. SEEDS=n takes so
many seeds a setting, FROM=k begins at the k-th setting (from 0): all 27 take about two core-hours.
Nothing should be recommended in more than CHANCE of them.
"""

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from placer import chance, topology
from placer.model import ModelShape
from placer.objective import DISPATCHES, Dispatch, Objective
from placer.plan import Infeasible, Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace
from placer.trials import CHANCE, Case, Study
from placer.whatif import advise

SEEDS = int(os.environ.get("SEEDS", "1000"))
FROM = int(os.environ.get("FROM", "0"))
MODEL = ModelShape(name="small", layers=2, experts=8, top_k=2, hidden=2048, moe_intermediate=1024)
TOKENS = (100, 400, 2000)
SEQUENCE = 10  # tokens
SOURCES = ("trace", "profile", "loads")


def run() -> None:
    print(f"recommended of {SEEDS} seeds, {MODEL.dims}, 2 and 4 GPUs, 0, 4 and 8 redundant slots")
    with ProcessPoolExecutor(initializer=plan_chance_once) as pool:
        for tokens, source, dispatch in list(product(TOKENS, SOURCES, DISPATCHES))[FROM:]:
            one = partial(verdict, tokens, source, dispatch)
            found = Counter(pool.map(one, range(SEEDS), chunksize=10))
            mark = "" if found["recommended"] <= CHANCE * SEEDS else "  TOO MANY"
            setting = f"{tokens:5} tokens, {source:8}{dispatch:10}"
            print(f"{setting}{found['recommended']:4}{mark}  {dict(found)}", flush=True)


def plan_chance_once() -> None:
    """What chance wins is planned from recordings that do not depend on the seed."""
    known: dict[Any, Any] = {}

    def once(problem: Problem, optimizer: str) -> Solution | Infeasible:
        profile = problem.profile
        told = profile.transitions is None, profile.coactivation is None, profile.spread is None
        case = problem.topology, problem.slots, problem.objective, optimizer
        key = (*case, profile.tokens, *told)
        if key not in known:
            known[key] = solve(problem, optimizer)
        return known[key]

    setattr(chance, "solve", once)  # noqa: B010


def verdict(tokens: int, source: str, dispatch: Dispatch, seed: int) -> str:
    lots = np.random.default_rng(seed)
    keys = lots.random((tokens, MODEL.layers, MODEL.experts))
    ids = keys.argpartition(MODEL.top_k - 1, axis=2)[:, :, : MODEL.top_k]
    trace = Trace(ids, np.full(tokens // SEQUENCE, SEQUENCE), MODEL.experts)
    holdout = None
    if source == "trace":
        trace, holdout = trace.split(0.5, seed)
    profile = of_trace(trace)
    if source == "loads":
        profile = replace(profile, coactivation=None, transitions=None, spread=None)
    study = Study(MODEL, profile, Objective(), holdout)
    widths = [topology.preset("h100").resized(gpus, 1) for gpus in (2, 4)]
    cases = [Case(where, extra, dispatch) for where in widths for extra in (0, 4, 8)]
    return advise(study, cases, map).verdict
