"""Which GPU owns a request's tokens: the least loaded, or the one where it gains most."""

import heapq
from typing import Any

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


def chosen(stays: FloatArray, seq_lens: IntArray, peak: float = 1.0) -> IntArray:
    """[sequences] the GPU of each, so that least is sent, and by the GPU that sends most not more
    than ``peak`` of the mean: beyond that it is what takes longest, and costs as much as what all
    GPUs send. No GPU owns more tokens than one does if each goes to the least loaded. As
    ``shared``, then whole, then the best moves and exchanges.

    stays: [sequences, gpus] visits to each GPU, which stay if the sequence has its home there
    peak:  visits to the GPU that is visited most, over their mean (``owned.peak``)
    """
    gpus, tokens = stays.shape[1], seq_lens.astype(np.float64)
    even = homes(seq_lens, gpus)
    most = float(np.bincount(even, tokens, gpus).max())
    sends = stays.sum(axis=1, keepdims=True) - stays
    found = _exchanged(sends, tokens, shared(stays, tokens).argmax(axis=1), (most, peak))
    if np.bincount(found, tokens, gpus).max() <= most:
        return found
    return _exchanged(sends, tokens, even, (most, peak))  # no exchange of two made room


def _exchanged(
    sends: FloatArray, tokens: FloatArray, start: IntArray, limits: tuple[float, float]
) -> IntArray:
    """``start`` [sequences] after the best moves and exchanges.

    sends:  [sequences, gpus]
    limits: tokens that no GPU gets more of; and ``peak``
    """
    found, rows, gpus = start.copy(), np.arange(len(start)), sends.shape[1]
    most, peak = limits
    dear = 1.0 + float(sends.sum())  # no exchange is worth a token too many
    for _ in range(EXCHANGES):
        owned, here = np.bincount(found, tokens, gpus), sends[rows, found]
        sent = np.bincount(found, here, gpus)
        enough = peak * sent.mean()

        def cost(
            at: Any, tokens: FloatArray, more: FloatArray, now: Any = (owned, sent, enough)
        ) -> FloatArray:
            """Of so many more tokens and visits that GPUs own and send."""
            owned, sent, enough = now
            over = _beyond(owned[at], tokens, most) * dear + _beyond(sent[at], more, enough)
            found: FloatArray = more / gpus + over
            return found

        every = np.arange(gpus)
        won = -cost(every, tokens[:, None], sends) - cost(found, -tokens, -here)[:, None]
        won[rows, found] = 0.0
        one, gpu = divmod(int(won.argmax()), gpus)
        best, other = won[one, gpu], -1
        if len(found) <= FEW:
            # [one, other]: the other's GPU gets the one, and gives the other.
            more = sends[:, found] - here
            won = -cost(found, tokens[:, None] - tokens, more)
            won += won.T
            won[found[:, None] == found] = 0.0
            if won.max() > best:
                best, (one, other) = won.max(), divmod(int(won.argmax()), len(found))
        if best <= 1e-9 * (1.0 + sent.mean()):
            break
        if other >= 0:
            gpu, found[other] = int(found[other]), found[one]
        found[one] = gpu
    return found


def _beyond(now: FloatArray, more: FloatArray, limit: float) -> FloatArray:
    """By how much what is beyond the limit grows."""
    grown: FloatArray = np.maximum(now + more - limit, 0.0) - np.maximum(now - limit, 0.0)
    return grown
