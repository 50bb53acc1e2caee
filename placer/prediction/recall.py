"""How many of a token's experts are foretold: by tables from the token and those before it, or from
its experts at the layer before."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placer.arrays import BoolArray, FloatArray, IntArray, frozen
from placer.tables.experts import ExpertTables
from placer.trace import Trace

TOKENS_AT_A_TIME = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Guesses:
    """Experts that were foretold of tokens, over all layers.

    right:     [layers] of them, those that the token used
    told:      how many
    used:      experts that the tokens used
    """

    right: IntArray
    told: int
    used: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "right", frozen(self.right))

    @property
    def recall(self) -> float:
        """Of the experts used, those foretold."""
        return int(self.right.sum()) / self.used

    @property
    def recall_by_layer(self) -> FloatArray:
        """[layers]"""
        return self.right * len(self.right) / self.used

    @property
    def precision(self) -> float | None:
        """Of the experts foretold, those used; None if none was."""
        return int(self.right.sum()) / self.told if self.told else None

    @property
    def f1(self) -> float:
        """Harmonic mean of the two."""
        return 2 * int(self.right.sum()) / (self.told + self.used)


def guesses(trace: Trace, experts: ExpertTables, rows: IntArray, only_likely: bool) -> Guesses:
    """By tables: the top-k of each token, whose precision is their recall; or of them only those
    that are likely (``experts.LIKELY``).

    rows: [tokens] of the tables
    """
    right = np.empty(trace.layers, dtype=np.int64)
    told = 0
    for layer in range(trace.layers):
        hit = among(experts.experts[layer, rows], trace.expert_ids[:, layer])
        if only_likely:
            likely = experts.likely[layer, rows]
            hit &= np.arange(trace.top_k) < likely[:, None]
            told += int(likely.sum(dtype=np.int64))
        else:
            told += hit.size
        right[layer] = hit.sum()
    return Guesses(right, told, trace.expert_ids.size)


def next_layer(trace: Trace, following: npt.NDArray[np.float16], width: int) -> Guesses:
    """The ``width`` likeliest experts of each layer but the first, from those of the layer before:
    what is known a layer ahead, to prefetch (Fate, Pre-gated MoE).

    following: [layers - 1, experts, experts] from ``experts.evidence``
    """
    right = np.zeros(trace.layers - 1, dtype=np.int64)
    for start in range(0, trace.tokens, TOKENS_AT_A_TIME):
        ids = trace.expert_ids[start : start + TOKENS_AT_A_TIME]
        for layer, evidence in enumerate(following.astype(np.float32)):
            likeliest = next_experts(ids[:, layer], evidence, width)
            right[layer] += among(likeliest, ids[:, layer + 1]).sum()
    transitions = trace.tokens * (trace.layers - 1)
    return Guesses(right, transitions * width, transitions * trace.top_k)


def next_experts(ids: IntArray, evidence: npt.NDArray[np.float32], width: int) -> IntArray:
    """[tokens, width] experts of the next layer.

    ids: [tokens, top_k] of this one; evidence: [experts, experts]
    """
    return np.argsort(-evidence[ids].sum(axis=1), axis=1, kind="stable")[:, :width]


def among(told: IntArray, used: IntArray) -> BoolArray:
    """[tokens, told] whether each is among those used [tokens, used]."""
    found: BoolArray = (told[:, :, None] == used[:, None, :]).any(axis=2)
    return found
