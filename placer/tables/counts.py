"""Which experts tokens used, counted; what several agents counted adds up."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from placer.arrays import FloatArray, IntArray, frozen
from placer.errors import RoutingError
from placer.tables.vocabulary import Vocabulary, token_identity
from placer.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """T[l][token, expert]: how often each token used each expert.

    times:  [rows] occurrences of each token
    counts: [layers, rows, experts] those that were routed to each expert

    The last row is all tokens together, each layer's prior.
    """

    vocabulary: Vocabulary
    times: IntArray
    counts: IntArray
    top_k: int

    def __post_init__(self) -> None:
        for name in ("times", "counts"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    @property
    def dims(self) -> str:
        layers, _, experts = self.counts.shape
        return f"{layers} layers x {experts} experts, top-{self.top_k}"

    def probability(self, tokens: IntArray, layer: int) -> FloatArray:
        """[tokens, experts] Pr(expert | token), which is also its confidence C_p; sums to top_k."""
        rows = self.vocabulary.rows(tokens)
        return self.counts[layer, rows] / self.times[rows, None]

    def __add__(self, other: "TokenTable") -> "TokenTable":
        """Of both recordings, of other tokens each: as if they had been counted as one.

        Raises RoutingError for another model's, or where neighbours' rows stand in.
        """
        if self.dims != other.dims:
            raise RoutingError(
                f"tables of {self.dims} and of {other.dims} do not add up: give one model's"
            )
        if any(len(one.vocabulary.tokens) + 1 != len(one.times) for one in (self, other)):
            raise RoutingError("tables with neighbours' rows do not add up: embed their sum")
        tokens, times, counts = merged(
            [(one.vocabulary.tokens, one.times[:-1], one.counts[:, :-1]) for one in (self, other)]
        )
        total = self.counts[:, -1:].astype(np.int64) + other.counts[:, -1:]
        return TokenTable(
            Vocabulary(tokens, np.arange(len(tokens))),
            np.append(times, self.times[-1] + other.times[-1]),
            np.concatenate([counts, total.astype(small(int(total.max())))], axis=1),
            self.top_k,
        )


def token_table(trace: Trace, embedding: FloatArray | None = None) -> TokenTable:
    """The experts of each token in ``trace``.

    embedding: [vocabulary, dimensions] the model's token embedding, if known: vocabulary ids that
        the trace lacks then take the row of their nearest neighbour (Euclidean) that it has

    Memory: layers * distinct tokens * experts counts, of 2 bytes or more.
    """
    tokens, kind = np.unique(token_identity(trace), return_inverse=True)
    kinds = len(tokens)
    counts = experts_by_kind(trace, kind, np.arange(trace.tokens), kinds)
    prior = trace.load[:, None].astype(small(trace.tokens))
    vocabulary = Vocabulary(tokens, np.arange(kinds))
    if embedding is not None:
        vocabulary = vocabulary.with_neighbours(embedding)
    times = np.append(np.bincount(kind, minlength=kinds), trace.tokens)
    return TokenTable(vocabulary, times, np.concatenate([counts, prior], axis=1), trace.top_k)


def experts_by_kind(trace: Trace, kind: IntArray, at: IntArray, kinds: int) -> IntArray:
    """[layers, kinds, experts] how often tokens of each kind used each expert.

    kind, at: [some] the kind of some tokens, and their places in the trace
    """
    experts = trace.experts
    most = int(np.bincount(kind, minlength=1).max())
    counts = np.empty((trace.layers, kinds, experts), dtype=small(most))
    for layer in range(trace.layers):
        cell = kind[:, None] * experts + trace.expert_ids[at, layer]
        found = np.bincount(cell.ravel(), minlength=kinds * experts)
        counts[layer] = found.reshape(kinds, experts)
    return counts


Part = tuple[IntArray, IntArray, IntArray]


def merged(parts: list[Part]) -> Part:
    """Keys, numbers and counts of several parts as one, the keys ascending.

    Of a part: keys [rows], each once; numbers [..., rows]; counts [layers, rows, experts]
    """
    keys = np.unique(np.concatenate([part[0] for part in parts]))
    rows = [np.searchsorted(keys, part[0]) for part in parts]
    numbers = np.zeros((*parts[0][1].shape[:-1], len(keys)), dtype=np.int64)
    for row, (_, some, _) in zip(rows, parts, strict=True):
        numbers[..., row] += some
    most = sum(int(part[2].max(initial=0)) for part in parts)
    layers, _, experts = parts[0][2].shape
    counts = np.zeros((layers, len(keys), experts), dtype=small(most))
    for row, (_, _, some) in zip(rows, parts, strict=True):
        counts[:, row] += some.astype(counts.dtype, copy=False)
    return keys, numbers, counts


def small(most: int) -> np.dtype[Any]:
    """The type for counts up to ``most``."""
    return np.promote_types(np.min_scalar_type(most), np.uint16)
