"""SLO curves: the load that a pool from 4 to 6 ranks keeps in time, by how long a change takes.

The paper's rule (``threshold``) looks after the pool of simulations/pool.py, whose ranks are H100s
with Qwen3-30B-A3B; prompts have 2,000 tokens, answers 625, objectives are 1 s and 1 s.
"""

from controller.size_settings import Autoscale
from simulations.arrivals import poisson
from simulations.run import simulate

RULE = Autoscale("threshold", ttft_s=1.0, tpot_s=1.0, least=4, most=6, step=2, window_s=10.0)
SECONDS, PROMPT, OUTPUT = 300.0, 2000, 625
IN_TIME = 0.9
MOST, CLOSE = 64.0, 0.1  # requests a second


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
