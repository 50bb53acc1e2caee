"""How long a decision takes, with and without Numba."""

import subprocess
import sys
import time
from statistics import median

import numpy as np

from controller.router.scheduling.kernels import Costs
from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Request
from controller.router.scheduling.scheduler import Batch, Scheduler
from placer.arrays import IntArray
from placer.tables import Vocabulary

IDS, RANKS, LONG, SHORT = 129_280, 32, 2000, 32
ROUNDS, BATCH = 2000, 20_000


def a_scheduler(engines: int = 1) -> Scheduler:
    """All ranks in so many engines."""
    rng = np.random.default_rng(0)
    shares = [rng.random((IDS + 1, RANKS // engines)) for _ in range(engines)]
    tables = Lookup.of(Vocabulary(np.arange(IDS), np.arange(IDS)), shares)
    pool = [Engine(f"engine-{one}", RANKS // engines, table=one) for one in range(engines)]
    return Scheduler(pool, Costs(1e-6, 1e-6, 1e-6), tables)


def zipf(rng: np.random.Generator, size: int | tuple[int, int]) -> IntArray:
    """Token ids as frequent as words are (Zipf's law)."""
    return np.minimum(rng.zipf(1.1, size), IDS) - 1


def decide_us(tokens: int, with_reasons: bool = False) -> float:
    """Median microseconds of CPU time of a decision on a prompt of so many tokens."""
    scheduler, rng = a_scheduler(), np.random.default_rng(1)
    times = []
    for prompt in zipf(rng, (ROUNDS, tokens)):
        request = Request(prompt, tokens, 100)
        begun = time.process_time()
        decision = scheduler.choose(request)
        if with_reasons:
            str(decision.why)
        times.append(time.process_time() - begun)
        scheduler.ended(decision, 100)
    return median(times) * 1e6


def batched_per_s(tokens: int) -> float:
    """Decisions a second of the kernel for many."""
    scheduler, rng = a_scheduler(), np.random.default_rng(1)
    lens = np.full(BATCH, tokens)
    batch = Batch(zipf(rng, BATCH * tokens), lens, np.full(BATCH, 100))
    times = []
    for _ in range(5):
        begun = time.process_time()
        scheduler.placed(batch)
        times.append(time.process_time() - begun)
    return BATCH / median(times)


def without_numba_us() -> float:
    """``decide_us`` of a long prompt, in a Python that cannot import Numba."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from bench.prescheduling.speed import LONG, decide_us\n"
        "print(decide_us(LONG))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(found.stdout)
