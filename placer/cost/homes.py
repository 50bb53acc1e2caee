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
    most = float(np.bincount(homes(seq_lens, gpus), tokens, gpus).max())
    found = shared(gain, tokens).argmax(axis=1)
    # No gain is worth a token too many.
    worth = gain / tokens[:, None]
    dear = 1.0 + 2 * float((worth.max(axis=1) - worth.min(axis=1)).max())
    rows, over = np.arange(len(found)), _Over(most, dear)
    for _ in range(EXCHANGES):
        owned = np.bincount(found, tokens, gpus)
        here = gain[rows, found]
        cost = over.cost(owned, tokens[:, None])
        cost = cost + over.cost(owned[found], -tokens)[:, None]
        won = gain - here[:, None] - cost
        won[rows, found] = 0.0
        one, gpu = divmod(int(won.argmax()), gpus)
        best, other = won[one, gpu], -1
        if len(found) <= FEW:
            more = tokens[:, None] - tokens
            there = gain[:, found]
            cost = over.cost(owned[found], more) + over.cost(owned[found][:, None], -more)
            won = there + there.T - here - here[:, None] - cost
            won[found[:, None] == found] = 0.0
            if won.max() > best:
                best, (one, other) = won.max(), divmod(int(won.argmax()), len(found))
        if best <= 1e-9 * (1.0 + abs(here).sum()):
            break
        if other >= 0:
            gpu = int(found[other])
            found[other] = found[one]
        found[one] = gpu
    return found


class _Over:
    """What tokens beyond the most cost."""

    def __init__(self, most: float, dear: float) -> None:
        self.most, self.dear = most, dear

    def cost(self, owned: FloatArray, more: FloatArray) -> FloatArray:
        after, before = (np.maximum(one - self.most, 0.0) for one in (owned + more, owned))
        cost: FloatArray = self.dear * (after - before)
        return cost
