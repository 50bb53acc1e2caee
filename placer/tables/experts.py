"""Which experts a token will use: by its context where that is known, else by itself, else as all
tokens do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray, frozen
from placer.tables.contexts import LEAST, ContextTable, contexts
from placer.tables.counts import TokenTable
from placer.tables.vocabulary import Vocabulary
from placer.trace import Trace

LIKELY = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class ExpertTables:
    """The top-k likeliest experts of a token at each layer.

    keys:    of the contexts of 2, 3 and 4 tokens: hashes in ascending order
    experts: [layers, rows, top_k] the likeliest first; one byte each up to 256 experts
    likely:  [layers, rows] how many of them have a chance of ``LIKELY`` or more

    Rows are those of the vocabulary, then those of the contexts of each order; the last one is the
    prior.
    """

    vocabulary: Vocabulary
    keys: tuple[IntArray, ...]
    experts: IntArray
    likely: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(frozen(keys) for keys in self.keys))
        for name in ("experts", "likely"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @property
    def orders(self) -> int:
        """Tokens of the longest context, the token itself included."""
        return len(self.keys) + 1

    def rows(self, tokens: IntArray, seq_lens: IntArray, order: int) -> IntArray:
        """[tokens] the row of each: of the longest context that is known, up to ``order`` tokens.
        Of order 0 it is the prior.

        tokens: [tokens] identities, sequence after sequence
        """
        if order == 0:
            return np.full(len(tokens), -1)
        row = self.vocabulary.rows(tokens)
        first = self.experts.shape[1] - 1 - sum(len(keys) for keys in self.keys)
        for longer, keys in enumerate(self.keys[: order - 1], start=2):
            at, hashes = contexts(tokens, seq_lens, longer)
            found = np.searchsorted(keys, hashes)
            known = found < len(keys)
            known[known] = keys[found[known]] == hashes[known]
            row[at[known]] = first + found[known]
            first += len(keys)
        return row


def expert_tables(
    table: TokenTable, longer: Sequence[ContextTable], least: int = LEAST
) -> ExpertTables:
    """From counts; contexts of fewer than ``least`` sequences are left out.

    longer: those of 2, 3, ... tokens, in this order
    """
    kept = [one.seen[0] >= least for one in longer]
    layers, _, experts = table.counts.shape
    rows = len(table.times) + sum(int(some.sum()) for some in kept)
    found = np.empty((layers, rows, table.top_k), dtype=np.min_scalar_type(experts - 1))
    likely = np.empty((layers, rows), dtype=np.uint8)
    times = [one.seen[1, some] for one, some in zip(longer, kept, strict=True)]
    whole = np.concatenate([table.times[:-1], *times, table.times[-1:]])
    for layer in range(layers):
        own = table.counts[layer]
        parts = [one.counts[layer, some] for one, some in zip(longer, kept, strict=True)]
        counts = np.concatenate([own[:-1], *parts, own[-1:]]).astype(np.int64)
        # Among experts that came as often, the one that most tokens use.
        prior = np.empty(experts, dtype=np.int64)
        prior[np.lexsort((np.arange(experts), -own[-1].astype(np.int64)))] = np.arange(experts)
        best = np.argsort(-counts * experts + prior, axis=1, kind="stable")[:, : table.top_k]
        found[layer] = best
        chosen = np.take_along_axis(counts, best, axis=1)
        likely[layer] = (chosen >= LIKELY * whole[:, None]).sum(axis=1)
    keys = tuple(one.keys[some] for one, some in zip(longer, kept, strict=True))
    return ExpertTables(table.vocabulary, keys, found, likely)


def followers(trace: Trace) -> IntArray:
    """[layers - 1, experts, experts] how often a token used i at a layer and j at the next: all
    pairs of its experts."""
    experts = trace.experts
    counts = np.empty((trace.layers - 1, experts, experts), dtype=np.int64)
    for layer in range(trace.layers - 1):
        here, there = trace.expert_ids[:, layer], trace.expert_ids[:, layer + 1]
        pair = here[:, :, None].astype(np.int64) * experts + there[:, None, :]
        found = np.bincount(pair.ravel(), minlength=experts**2)
        counts[layer] = found.reshape(experts, experts)
    return counts


def evidence(pairs: IntArray, load: IntArray, tokens: int, top_k: int) -> FloatArray:
    """[layers - 1, experts, experts] what a token's use of i at a layer says for j at the next: the
    likeliest j are those with the largest sum over the token's experts i (naive Bayes),

        log P(j | i) - (1 - 1 / top_k) log P(j)

    pairs: from ``followers``; load: [layers, experts] of those ``tokens``
    """
    prior = (load[1:, None, :] + 1) / (tokens + load.shape[1])
    after = (pairs + prior) / (load[:-1, :, None] + 1)
    found: FloatArray = np.log(after) - (1 - 1 / top_k) * np.log(prior)
    return found
