"""SLO curves: the load that a pool from 4 to 6 ranks keeps in time, by how long a change takes.

The paper's rule (``threshold``) looks after the pool of simulations/pool.py, whose ranks are H100s
with Qwen3-30B-A3B; prompts have 2,000 tokens, answers 625, objectives are 1 s and 1 s.
"""

import math

import numpy as np

from controller.size_settings import Autoscale
from simulations.arrivals import poisson
from simulations.papers.elasticmoe.ways import ALL_OF_IT, NARROW, RESTART, WIDE, seconds
from simulations.papers.table import Curves, Row, Table
from simulations.run import simulate

RULE = Autoscale("threshold", ttft_s=1.0, tpot_s=1.0, least=4, most=6, step=2, window_s=10.0)
SECONDS, PROMPT, OUTPUT = 300.0, 2000, 625
IN_TIME = 0.9
MOST, CLOSE = 64.0, 0.1  # requests a second
RATES = tuple(range(8, 34, 2))  # requests a second
ABOUT = (
    "A pool that the paper's rule takes from 4 to 6 ranks, for five minutes at one rate: prompts "
    "of 2,000 tokens, answers of 625, objectives of 1 s and 1 s; a change takes the ladder's "
    "seconds. Ranks are H100s with Qwen3-30B-A3B (simulations/pool.py)."
)
WHY_RATE = "Other accelerators and another model; what counts is the distance to a restart."


def kept(seeds: int) -> Table:
    delays = {
        "elastic": seconds(ALL_OF_IT, NARROW, WIDE),
        "restart": seconds(RESTART, NARROW, WIDE),
        "no change": math.inf,
    }
    rows, curves = [], {}
    for name, delay_s in delays.items():
        rate = float(np.mean([held(delay_s, seed) for seed in range(seeds)]))
        published, why = ((8.7,), WHY_RATE) if name == "elastic" else ((), "")
        rows.append(Row(f"{name}: nine of ten in time", published, rate, "predicted",
                        "{:.1f} requests/s", why))  # fmt: skip
        shares = [np.mean([in_time(one, delay_s, seed) for seed in range(seeds)]) for one in RATES]
        curves[name] = RATES, [float(share) for share in shares]
    told = Curves("requests a second", "in time", curves)
    return Table("ElasticMoE, load that is kept in time", ABOUT, rows, told)


def in_time(per_s: float, delay_s: float, seed: int) -> float:
    """Share of the requests of five minutes at one rate, from 4 ranks on."""
    arrivals = poisson(per_s, SECONDS, PROMPT, OUTPUT, seed)
    return simulate(arrivals, RULE, delay_s).attainment


def held(delay_s: float, seed: int) -> float:
    """The most requests a second of which nine of ten are in time."""
    low, high = 0.0, MOST
    while high - low > CLOSE:
        middle = (low + high) / 2
        if in_time(middle, delay_s, seed) >= IN_TIME:
            low = middle
        else:
            high = middle
    return low
