"""Which GPU owns a request's tokens."""

import heapq

import numpy as np

from placer.arrays import IntArray


def homes(seq_lens: IntArray, gpus: int) -> IntArray:
    """[sequences] the GPU of each: in turn the one with the fewest tokens."""
    waiting = [(0, gpu) for gpu in range(gpus)]
    found = np.empty(len(seq_lens), dtype=np.intp)
    for sequence, length in enumerate(seq_lens.tolist()):
        tokens, gpu = waiting[0]
        found[sequence] = gpu
        heapq.heapreplace(waiting, (tokens + length, gpu))
    return found
