"""Which waiting requests to decode together, so that fewer experts are read (ExpertFlow).

A queue of requests, each with its next token known. First in, first out takes the oldest; re-batched,
the oldest goes with those whose experts add the fewest new ones, one after another (ours). Those that
were served queue up again behind the others.
"""

import numpy as np

from placer.arrays import BoolArray, IntArray
from placer.trace import Trace

QUEUE = 64
STEPS = 400  # enough for a mean


def active_experts(
    trace: Trace, batch: int, told: IntArray | None, queue: int = QUEUE
) -> float | None:
    """Distinct experts that a layer reads for a batch, mean of layers and steps; None if the trace
    has too few requests for a queue twice as long as a batch.

    told: [tokens, layers, top_k] experts by which batches are put together; None: first in, first
        out
    """
    queue = min(queue, trace.sequences)
    if queue < 2 * batch:
        return None
    first = np.cumsum(trace.seq_lens) - trace.seq_lens
    requests = list(zip(first.tolist(), (first + trace.seq_lens).tolist(), strict=True))
    waiting, following, read = requests[:queue], queue, 0
    for _ in range(STEPS):
        tokens = np.array([at for at, _ in waiting])
        if told is None:
            chosen = list(range(batch))
        else:
            chosen = _alike(_sets(told[tokens], trace.experts), batch)
        read += int(_sets(trace.expert_ids[tokens[chosen]], trace.experts).any(axis=0).sum())
        served = [waiting[one] for one in chosen]
        waiting = [one for at, one in enumerate(waiting) if at not in chosen]
        for at, end in served:
            if at + 1 < end:
                waiting.append((at + 1, end))
            else:  # it has ended: the next one comes, and after the last the first
                waiting.append(requests[following % len(requests)])
                following += 1
    return read / (STEPS * trace.layers)


def _alike(sets: BoolArray, batch: int) -> list[int]:
    """The first, and those that add the fewest; of equal ones the oldest.

    sets: [queue, layers * experts]
    """
    chosen, covered = [0], sets[0]
    for _ in range(batch - 1):
        new = (sets & ~covered).sum(axis=1)
        new[chosen] = sets.shape[1] + 1
        chosen.append(int(new.argmin()))
        covered = covered | sets[chosen[-1]]
    return chosen


def _sets(ids: IntArray, experts: int) -> BoolArray:
    """[some, layers * experts] from [some, layers, top_k]."""
    some, layers, _ = ids.shape
    found = np.zeros((some, layers, experts), dtype=np.bool_)
    np.put_along_axis(found, ids.astype(np.int64), True, axis=2)
    return found.reshape(some, -1)
