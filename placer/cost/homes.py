"""Which GPU owns a request's tokens: the least loaded, or the one where it gains most."""

import heapq

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.flow import SINK, SOURCE, Arcs, cheapest_flow

UNITS = 2**20  # of tokens in a flow, and of gains in its costs
FEW = 512  # requests: of more, each is too small a part to be exchanged for another
EXCHANGES = 500


def homes(seq_lens: IntArray, gpus: int) -> IntArray:
    """[sequences] the GPU of each: in turn the one with the fewest tokens."""
    waiting = [(0, gpu) for gpu in range(gpus)]
    found = np.empty(len(seq_lens), dtype=np.intp)
    for sequence, length in enumerate(seq_lens.tolist()):
        tokens, gpu = waiting[0]
        found[sequence] = gpu
        heapq.heapreplace(waiting, (tokens + length, gpu))
    return found


def shared(gain: FloatArray, tokens: FloatArray) -> FloatArray:
    """[requests, gpus] shares of requests, or of clusters of them, so that every GPU owns as many
    tokens and they gain most: a flow of least cost.

    gain:   [requests, gpus] of a request with all of it at home there
    tokens: [requests]
    """
    requests, gpus = gain.shape
    each = UNITS // gpus
    upto = np.rint(np.cumsum(tokens) / tokens.sum() * each * gpus).astype(np.int64)
    units = np.diff(upto, prepend=0)
    worth = gain / tokens[:, None]
    worth = worth / max(float(worth.max()), 1e-300)
    request, gpu = 2 + np.arange(requests), 2 + requests + np.arange(gpus)
    free = [np.zeros(size, dtype=np.int64) for size in (requests, gpus)]
    arcs = Arcs(
        tail=np.concatenate([np.full(requests, SOURCE), np.repeat(request, gpus), gpu]),
        head=np.concatenate([request, np.tile(gpu, requests), np.full(gpus, SINK)]),
        capacity=np.concatenate([units, np.repeat(units, gpus), np.full(gpus, each)]),
        cost=np.concatenate(
            [free[0], -1 - np.rint(worth * UNITS).astype(np.int64).ravel(), free[1]]
        ),
    )
    flow = cheapest_flow(arcs, each * gpus)[requests : requests * (1 + gpus)]
    owned = flow.reshape(requests, gpus).astype(np.float64)
    small = owned.sum(axis=1) == 0  # of less than a unit
    owned[small] = np.eye(gpus)[gain[small].argmax(axis=1)]
    share: FloatArray = owned / owned.sum(axis=1, keepdims=True)
    return share


def chosen(gain: FloatArray, seq_lens: IntArray) -> IntArray:
    """[sequences] the GPU of each, so that they gain most and no GPU owns more tokens than one does
    if each goes to the least loaded: as ``shared``, then whole, then the best moves and exchanges.

    gain: [sequences, gpus] of a sequence with its home there
    """
    gpus, tokens = gain.shape[1], seq_lens.astype(np.float64)
    even = homes(seq_lens, gpus)
    most = float(np.bincount(even, tokens, gpus).max())
    found = _exchanged(gain, tokens, shared(gain, tokens).argmax(axis=1), most)
    if np.bincount(found, tokens, gpus).max() <= most:
        return found
    return _exchanged(gain, tokens, even, most)  # no exchange of two made room


def _exchanged(gain: FloatArray, tokens: FloatArray, start: IntArray, most: float) -> IntArray:
    """``start`` [sequences] after the best moves and exchanges, of which none brings a GPU more
    than the most tokens, or further beyond it."""
    found, rows, gpus = start.copy(), np.arange(len(start)), gain.shape[1]
    # No exchange is worth a token too many.
    dear = 1.0 + 2 * float((gain.max(axis=1) - gain.min(axis=1)).max())

    def cost(owned: FloatArray, more: FloatArray) -> FloatArray:
        over: FloatArray = np.maximum(owned + more - most, 0.0) - np.maximum(owned - most, 0.0)
        return dear * over

    for _ in range(EXCHANGES):
        owned = np.bincount(found, tokens, gpus)
        here, mine = gain[rows, found], owned[found]
        won = gain - here[:, None] - cost(owned, tokens[:, None]) - cost(mine, -tokens)[:, None]
        won[rows, found] = 0.0
        one, gpu = divmod(int(won.argmax()), gpus)
        best, other = won[one, gpu], -1
        if len(found) <= FEW:
            more, there = tokens[:, None] - tokens, gain[:, found]
            won = there + there.T - here - here[:, None]
            won -= cost(mine, more) + cost(mine[:, None], -more)
            won[found[:, None] == found] = 0.0
            if won.max() > best:
                best, (one, other) = won.max(), divmod(int(won.argmax()), len(found))
        if best <= 1e-9 * (1.0 + abs(here).sum()):
            break
        if other >= 0:
            gpu, found[other] = int(found[other]), found[one]
        found[one] = gpu
    return found
