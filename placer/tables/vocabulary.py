"""What a token is, and which row of a table belongs to it."""

from dataclasses import dataclass
from math import comb

import numpy as np

from placer.arrays import FloatArray, IntArray, frozen
from placer.errors import RoutingError
from placer.trace import Trace

NEIGHBOURS_AT_A_TIME = 1024  # bounds the distances held in memory


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Which row of a table belongs to a token. The last row is for tokens that are not known.

    tokens: [known] identities in ascending order
    row:    [known] the row of each
    """

    tokens: IntArray
    row: IntArray

    def __post_init__(self) -> None:
        for name in ("tokens", "row"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def rows(self, tokens: IntArray) -> IntArray:
        """[tokens] the row of each; -1, which is the last one, for those not known."""
        at = np.searchsorted(self.tokens, tokens).clip(max=len(self.tokens) - 1)
        return np.where(self.tokens[at] == tokens, self.row[at], -1)

    def with_neighbours(self, embedding: FloatArray) -> "Vocabulary":
        """Every id of the embedding, those not known with the row of the nearest one that is
        (Euclidean).

        embedding: [ids, dimensions] the model's token embedding

        Raises RoutingError if a known id is outside of it.
        """
        low, high = int(self.tokens[0]), int(self.tokens[-1])
        if low < 0 or high >= len(embedding):
            raise RoutingError(
                f"token id {low if low < 0 else high} is outside the embedding's {len(embedding)} "
                "rows: give the embedding of the model that was traced"
            )
        known = embedding[self.tokens].astype(np.float64)
        row = np.empty(len(embedding), dtype=np.int64)
        for start in range(0, len(embedding), NEIGHBOURS_AT_A_TIME):
            some = embedding[start : start + NEIGHBOURS_AT_A_TIME].astype(np.float64)
            # Squared distance, without the part that is the same for all neighbours.
            nearest = ((known**2).sum(axis=1) - 2 * some @ known.T).argmin(axis=1)
            row[start : start + len(some)] = self.row[nearest]
        row[self.tokens] = self.row
        return Vocabulary(np.arange(len(embedding)), row)


def token_identity(trace: Trace) -> IntArray:
    """[tokens] what each token is: its vocabulary id.

    Where a trace has none, the set of its experts at the first layer stands in, as its rank among
    all sets of that size (ours). The first router sees little more than the token itself, so that
    equal tokens mostly get equal sets; different tokens may share one. What is predicted from it
    is an upper bound: nobody knows that set before the token runs.
    """
    if trace.token_ids is not None:
        return trace.token_ids.astype(np.int64)
    experts = np.sort(trace.expert_ids[:, 0], axis=1)
    # Combinatorial number system, modulo 2**63: the largest models' sets do not all fit.
    rank = [
        [comb(expert, place + 1) % 2**63 for place in range(trace.top_k)]
        for expert in range(trace.experts)
    ]
    terms = np.array(rank, dtype=np.uint64)[experts, np.arange(trace.top_k)]
    return (terms.sum(axis=1) % np.uint64(2**63)).astype(np.int64)
