"""Which waiting requests to decode together, so that fewer experts are read (ExpertFlow).

A queue of requests, the next token of each known, that all are served once before any is again:
first in, first out, in batches as they come; or re-batched, the oldest with those whose experts add
the fewest new ones, one after another, then the oldest of the rest (ours).
"""

import numpy as np

from placer.arrays import BoolArray, IntArray
from placer.trace import Trace

QUEUE = 64
ROUNDS = 50  # that each waiting request is served: enough for a mean


def active_experts(
    trace: Trace, batch: int, told: IntArray | None, queue: int = QUEUE
) -> float | None:
    """Distinct experts that a layer reads for a batch, mean of layers and batches; None if the
    trace has too few requests for two batches.

    told: [tokens, layers, top_k] experts by which batches are put together; None: first in, first
        out
    """
    queue = min(queue, trace.sequences) // batch * batch
    if queue < 2 * batch:
        return None
    # Of all kinds of traffic, in whatever order they were recorded, and each as far as it is.
    lots = np.random.default_rng(0)
    order, first = lots.permutation(trace.sequences), np.cumsum(trace.seq_lens) - trace.seq_lens
    waiting = order[:queue]
    at = first[waiting] + lots.integers(trace.seq_lens[waiting])
    end = first[waiting] + trace.seq_lens[waiting]
    following, read = queue, 0
    batches: IntArray = np.arange(queue).reshape(-1, batch)
    for _ in range(ROUNDS):
        if told is not None:
            batches = _alike(_sets(told[at], trace.experts), batch)
        used = _sets(trace.expert_ids[at], trace.experts)[batches]
        read += int(used.any(axis=1).sum())
        at += 1
        for ended in np.flatnonzero(at == end):  # the next one comes, and after the last the first
            new = order[following % trace.sequences]
            at[ended], end[ended] = first[new], first[new] + trace.seq_lens[new]
            following += 1
    return read / (ROUNDS * (queue // batch) * trace.layers)


def _alike(sets: BoolArray, batch: int) -> IntArray:
    """[batches, batch] of the oldest each time, and those that add the fewest to it; of equal ones
    the oldest.

    sets: [queue, layers * experts], the oldest first
    """
    left = np.arange(len(sets))
    found = []
    while len(left):
        chosen, covered = [0], sets[left[0]]
        for _ in range(batch - 1):
            new = (sets[left] & ~covered).sum(axis=1)
            new[chosen] = sets.shape[1] + 1
            chosen.append(int(new.argmin()))
            covered = covered | sets[left[chosen[-1]]]
        found.append(left[chosen])
        left = np.delete(left, chosen)
    return np.array(found)


def _sets(ids: IntArray, experts: int) -> BoolArray:
    """[some, layers * experts] from [some, layers, top_k]."""
    some, layers, _ = ids.shape
    found = np.zeros((some, layers, experts), dtype=np.bool_)
    np.put_along_axis(found, ids.astype(np.int64), True, axis=2)
    return found.reshape(some, -1)
