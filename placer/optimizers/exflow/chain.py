"""Chains: split the experts of each layer into alike parts so that few tokens change parts.

``counts`` is a list, for each layer but the last, of [experts, experts of the next layer] tokens.
Layers may have different numbers of experts; the parts of a layer differ by one at most. Kept are
the tokens whose next expert is in the same part; to keep most is ExFlow's least crossings.

Only neighbours meet in the cost, and parts are alike. So the best that two layers' splits can keep
is a matching of their parts, and the best chain of splits is a shortest path (``join``). With all
splits of every layer at hand this is exact. With a few good ones of each it makes a better chain
from the pieces of several.
"""

from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
from scipy.optimize import linear_sum_assignment

from placer.arrays import FloatArray, IntArray

Counts = Sequence[FloatArray]
Chain = Sequence[IntArray]  # for each layer, [experts] the part of each

FEW = 5  # parts whose orders are all looked at
POOL = 12  # chains that are joined
SHUFFLED = 4  # one of so many experts of a layer, to begin another chain


def experts_of(counts: Counts) -> list[int]:
    """[layers]"""
    return [len(count) for count in counts] + [counts[-1].shape[1]]


def kept(counts: Counts, chain: Chain) -> float:
    """Tokens that stay in their part."""
    pairs = zip(counts, pairwise(chain), strict=True)
    return float(sum(count[a[:, None] == b].sum() for count, (a, b) in pairs))


def most_kept(counts: Counts, parts: int) -> float:
    """A bound: no chain keeps more.

    Each expert shares its part with experts / parts of the next layer at most. The heaviest such
    pairs of a transition are a b-matching; any prices ``u``, ``v`` of a place bound it from above
    (linear programming duality), and a few turns of the best prices given the others' are near.
    """
    total = 0.0
    for count in counts:
        after, before = (-(-size // parts) for size in count.shape[::-1])
        u, v = np.zeros((len(count), 1)), np.zeros((1, count.shape[1]))
        for _ in range(8):
            u = _next_largest(count - v, after, axis=1)
            v = _next_largest(count - u, before, axis=0)
        over = np.maximum(count - u - v, 0.0).sum()
        total += float(after * u.sum() + before * v.sum() + over)
    return total


def _next_largest(values: FloatArray, rank: int, axis: int) -> FloatArray:
    """The largest value after ``rank`` others, at least 0; its axis is kept with length 1."""
    if rank >= values.shape[axis]:
        return np.zeros_like(values.take([0], axis=axis))
    return np.maximum(np.sort(values, axis=axis).take([-1 - rank], axis=axis), 0.0)


def join(counts: Counts, pools: Sequence[IntArray], parts: int) -> Chain:
    """The chain that keeps most, each layer's split being one of ``pools`` [ways, experts]."""
    best, steps = np.zeros(len(pools[0])), []
    for count, (one, other) in zip(counts, pairwise(pools), strict=True):
        total = best[:, None] + _matched(_shared(count, one, other, parts))
        steps.append(total.argmax(axis=0))
        best = total.max(axis=0)
    path = [int(best.argmax())]
    for step in reversed(steps):
        path.append(int(step[path[-1]]))
    path.reverse()

    chain = [pools[0][path[0]]]
    for count, pool, way in zip(counts, pools[1:], path[1:], strict=True):
        shared = _shared(count, chain[-1][None], pool[way][None], parts)[0, 0]
        part_of = np.argsort(linear_sum_assignment(shared, maximize=True)[1])
        chain.append(part_of[pool[way]])
    return chain


def _shared(count: FloatArray, one: IntArray, other: IntArray, parts: int) -> FloatArray:
    """[ways, other ways, parts, parts] tokens from a part of one way to a part of the other."""
    label = np.arange(parts)[:, None]
    sources = (one[:, None] == label).reshape(-1, len(count)).astype(np.float64)
    targets = (other[:, None] == label).reshape(-1, count.shape[1]).astype(np.float64)
    flow = sources @ count @ targets.T
    return flow.reshape(len(one), parts, len(other), parts).transpose(0, 2, 1, 3)


def _matched(shared: FloatArray) -> FloatArray:
    """[ways, other ways] what the best matching of parts keeps."""
    parts = shared.shape[-1]
    if parts <= FEW:
        orders = permutations(range(parts))
        each = [shared[..., range(parts), order].sum(axis=-1) for order in orders]
        return np.stack(each).max(axis=0)
    result = np.empty(shared.shape[:2])
    for at in np.ndindex(result.shape):
        result[at] = shared[at][linear_sum_assignment(shared[at], maximize=True)].sum()
    return result


def search(counts: Counts, parts: int, tries: int, starts: Sequence[Chain], seed: int) -> Chain:
    """A good chain: from ``starts`` and ``tries`` others, refined and joined, again and again."""
    rng = np.random.default_rng(seed)
    experts = experts_of(counts)
    pool = [refined(counts, start, parts) for start in starts]
    for done in range(0, tries, POOL):
        for _ in range(min(POOL, tries - done)):
            at = int(rng.integers(len(experts)))
            split = fill(rng.random((experts[at], parts)))
            if done:
                split = pool[0][at].copy()
                moved = rng.permutation(len(split))[: max(2, len(split) // SHUFFLED)]
                split[moved] = split[rng.permutation(moved)]
            pool.append(refined(counts, grown(counts, at, split, parts), parts))
        pools = [np.stack(ways) for ways in zip(*pool, strict=True)]
        pool = [refined(counts, join(counts, pools, parts), parts)]
    return pool[0]


def grown(counts: Counts, at: int, split: IntArray, parts: int) -> Chain:
    """From one layer's split outwards, each layer as its neighbour likes it best."""
    label = np.eye(parts)
    after, before = [split], [split]
    for count in counts[at:]:
        after.append(fill(count.T @ label[after[-1]]))
    for count in reversed(counts[:at]):
        before.append(fill(count @ label[before[-1]]))
    return before[:0:-1] + after


def refined(counts: Counts, chain: Chain, parts: int) -> Chain:
    """Each layer in turn as its neighbours like it best, there and back, until nothing is won."""
    better, label, best = list(chain), np.eye(parts), -1.0
    last = len(better) - 1
    while (now := kept(counts, better)) > best:
        best = now
        for layer in [*range(last), *range(last, 0, -1)]:
            gain = np.zeros((len(better[layer]), parts))
            if layer > 0:
                gain += counts[layer - 1].T @ label[better[layer - 1]]
            if layer < last:
                gain += counts[layer] @ label[better[layer + 1]]
            better[layer] = fill(gain)
    return better


def fill(gain: FloatArray) -> IntArray:
    """[experts] the part of each, all parts equal but for one expert, so that ``gain`` is most.

    gain: [experts, parts]
    """
    experts, parts = gain.shape
    most = -(-experts // parts)
    place = np.repeat(np.arange(parts), most)
    spare = np.where(np.arange(len(place)) % most == most - 1, 0.0, -np.inf)
    filled = np.vstack([gain[:, place], np.tile(spare, (len(place) - experts, 1))])
    return place[linear_sum_assignment(filled, maximize=True)[1][:experts]]
