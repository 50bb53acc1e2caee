"""Which experts a token used after the tokens before it: n-gram contexts of 2 to 4 tokens.

A context that few requests have in common would tell what somebody wrote. None of fewer than
``LEAST`` sequences leaves the counts (experts.py), and the counts are never written down.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from placer.arrays import IntArray, frozen
from placer.tables.counts import experts_by_kind, merged
from placer.tables.vocabulary import token_identity
from placer.trace import Trace

ORDERS = (2, 3, 4)
LEAST = (
    3  # sequences: two requests or more, as one's prompt and answer may be sequences of their own
)
MOST_CELLS = 2**28  # contexts x layers x experts of an order: half a GB
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth's multiplicative hash)


class Contexts(NamedTuple):
    """at: [some] the places of tokens that have a context; keys: [some] its hash"""

    at: IntArray
    keys: IntArray


def contexts(tokens: IntArray, seq_lens: IntArray, order: int) -> Contexts:
    """Of each token that has ``order`` - 1 others before it in its sequence, they and itself.

    tokens: [tokens] identities, sequence after sequence
    """
    keys = np.zeros(len(tokens), dtype=np.uint64)
    for back in range(order - 1, -1, -1):
        shifted = np.zeros_like(keys)
        shifted[back:] = tokens[: len(tokens) - back].astype(np.uint64)
        keys = (keys ^ (keys >> np.uint64(29))) * _HASH + shifted + np.uint64(1)
    place = np.arange(len(tokens)) - np.repeat(np.cumsum(seq_lens) - seq_lens, seq_lens)
    at = np.flatnonzero(place >= order - 1)
    return Contexts(at, keys[at])


@dataclass(frozen=True, slots=True, eq=False)
class ContextTable:
    """How often each context's last token used each expert.

    keys:   [contexts] hashes in ascending order
    seen:   [2, contexts] the sequences that had it, and how often it came
    counts: [layers, contexts, experts]
    """

    order: int
    keys: IntArray
    seen: IntArray
    counts: IntArray

    def __post_init__(self) -> None:
        for name in ("keys", "seen", "counts"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def __add__(self, other: "ContextTable") -> "ContextTable":
        """Of both recordings, of other sequences each; the most frequent, if memory holds no more
        (then not quite as if they had been counted as one)."""
        parts = [(one.keys, one.seen, one.counts) for one in (self, other)]
        keys, seen, counts = merged(parts)
        kept = _most_frequent(seen, counts.shape[0] * counts.shape[2])
        return ContextTable(self.order, keys[kept], seen[:, kept], counts[:, kept])


def context_table(trace: Trace, order: int) -> ContextTable:
    """The experts of each context in ``trace``; of the most frequent, if memory holds no more."""
    at, hashes = contexts(token_identity(trace), trace.seq_lens, order)
    keys, kind = np.unique(hashes, return_inverse=True)
    sequence = np.repeat(np.arange(trace.sequences), trace.seq_lens)[at]
    of_sequence = np.unique(kind * trace.sequences + sequence) // trace.sequences
    sequences = np.bincount(of_sequence, minlength=len(keys))
    seen = np.stack([sequences, np.bincount(kind, minlength=len(keys))])
    kept = _most_frequent(seen, trace.layers * trace.experts)
    row = np.full(len(keys), -1)
    row[kept] = np.arange(len(kept))
    counted = row[kind] >= 0
    counts = experts_by_kind(trace, row[kind[counted]], at[counted], len(kept))
    return ContextTable(order, keys[kept], seen[:, kept], counts)


def _most_frequent(seen: IntArray, cells: int) -> IntArray:
    """Contexts, in their order, whose counts fit in memory: those of most sequences.

    cells: counts of each
    """
    most = MOST_CELLS // cells
    if seen.shape[1] <= most:
        return np.arange(seen.shape[1])
    order = np.lexsort((-seen[1], -seen[0]))
    return np.sort(order[:most])
