"""How much the experts of nearby tokens repeat (Liang et al., "Not All Models Suit Expert
Offloading", arXiv 2505.16056): what a cache of experts can win, whatever it predicts."""

import numpy as np

from placer.arrays import IntArray
from placer.trace import Trace

TOKENS = 4096  # of a trace: more hardly change a hit rate


def srp(trace: Trace, segment: int) -> float | None:
    """SRP(m): how well a fixed group of experts covers m = ``segment`` tokens, as F1.

    F1(a) = 2 sum_{f >= a} f / (m #{f >= a} + sum f), f the activations of an expert in a segment,
    and the best of all a; pooled over experts, layers and segments. Segments are whole ones of a
    sequence; None if there is none.
    """
    place = np.arange(trace.tokens) - np.repeat(
        np.cumsum(trace.seq_lens) - trace.seq_lens, trace.seq_lens
    )
    length = np.repeat(trace.seq_lens, trace.seq_lens)
    whole = np.flatnonzero(place < length // segment * segment)
    if not len(whole):
        return None
    number = np.arange(len(whole)) // segment
    times = np.zeros(segment + 1, dtype=np.int64)  # how often each f occurs
    for layer in range(trace.layers):
        cell = number[:, None] * trace.experts + trace.expert_ids[whole, layer]
        times += np.bincount(np.bincount(cell.ravel()), minlength=segment + 1)
    f = np.arange(segment + 1)
    covered, chosen = (np.cumsum((each * times)[:0:-1]) for each in (f, np.ones_like(f)))
    return float((2 * covered / (segment * chosen + (f * times).sum())).max())


def sch(trace: Trace, segment: int, size: float) -> float:
    """SCH(m, rho): hit rate of a cache of rho K experts a layer that, after each token, keeps those
    that the next m = ``segment`` tokens of the sequence use most; of equal ones those with the
    lowest ids. It begins each sequence empty.

    size: rho
    """
    room = max(round(size * trace.top_k), 1)
    hits = tokens = 0
    for sequence in np.split(trace.expert_ids, np.cumsum(trace.seq_lens)[:-1]):
        hits += _hits(sequence, trace.experts, segment, room)
        tokens += len(sequence)
        if tokens >= TOKENS:
            break
    return hits / (tokens * trace.layers * trace.top_k)


def _hits(ids: IntArray, experts: int, segment: int, room: int) -> int:
    """Of one sequence [tokens, layers, top_k]."""
    tokens, layers, _ = ids.shape
    ahead = np.zeros((layers, experts), dtype=np.int64)
    for token in ids[:segment]:
        _add(ahead, token, 1)
    cached = np.zeros((layers, experts), dtype=np.bool_)
    hits = 0
    for at in range(tokens):
        _add(ahead, ids[at], -1)
        if at + segment < tokens:
            _add(ahead, ids[at + segment], 1)
        needed = np.zeros_like(cached)
        np.put_along_axis(needed, ids[at].astype(np.int64), True, axis=1)
        hits += int((cached & needed).sum())
        worth = np.where(cached | needed, ahead, -1)
        kept = np.argsort(-worth, axis=1, kind="stable")[:, :room]
        cached = np.zeros_like(cached)
        np.put_along_axis(cached, kept, np.take_along_axis(worth, kept, axis=1) >= 0, axis=1)
    return hits


def _add(counts: IntArray, ids: IntArray, number: int) -> None:
    """To ``counts`` [layers, experts], of ``ids`` [layers, top_k], each once in its layer."""
    counts[np.arange(len(ids))[:, None], ids] += number
