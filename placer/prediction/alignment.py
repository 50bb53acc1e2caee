"""Tensor-parallel attention: tokens go to their experts' GPU, layer by layer, in equal chunks.

Every rank has every token's attention result in part; a reduce-scatter gives each rank a chunk of
the tokens, and which tokens that are is free. The tables say where each should go; chunks must be
of one size, so that tokens beyond it go elsewhere (align, Sem-MoE's Algorithm 3): the least sure
ones, each to the GPU with room that has most of its experts over all layers (ours).
"""

from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray, IntArray, frozen
from placer.tables.devices import CERTAIN, visited
from placer.tables.made import Tables
from placer.tables.rates import local_by_layer
from placer.tables.vocabulary import token_identity
from placer.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Shuffle:
    """What tokens find where they are sent. All [layers].

    wished, aligned:   share of activations that are local (LAR), as the tables wish and in equal
                       chunks
    *_imbalance:       tokens of the fullest rank over the mean; mean of the steps
    """

    wished: FloatArray
    aligned: FloatArray
    wished_imbalance: FloatArray
    aligned_imbalance: FloatArray

    def __post_init__(self) -> None:
        for name in ("wished", "aligned", "wished_imbalance", "aligned_imbalance"):
            object.__setattr__(self, name, frozen(getattr(self, name)))


def shuffle(trace: Trace, tables: Tables, step_tokens: int) -> Shuffle:
    """Of the trace's tokens, ``step_tokens`` a step."""
    placement, devices = tables.placement, tables.devices
    tokens = token_identity(trace)
    near = devices.near[devices.vocabulary.rows(tokens)].astype(np.float64)
    before = visited(trace, placement)
    wished = np.empty((trace.tokens, trace.layers), dtype=np.int64)
    chunks = np.empty_like(wished)
    for layer in range(trace.layers):
        last = before[[max(layer - 2, 0), max(layer - 1, 0)]].T
        wished[:, layer], sure = devices.guess(tokens, layer, last)
        for start in range(0, trace.tokens, step_tokens):
            step = slice(start, start + step_tokens)
            chunks[step, layer] = align(wished[step, layer], sure[step] / CERTAIN, near[step])
    return Shuffle(
        local_by_layer(trace, placement, wished),
        local_by_layer(trace, placement, chunks),
        _imbalance(wished, placement.gpus, step_tokens),
        _imbalance(chunks, placement.gpus, step_tokens),
    )


def align(wished: IntArray, sure: FloatArray, near: FloatArray) -> IntArray:
    """[tokens] the GPU of each, so that all get as many (the first ones one more, of a rest).

    wished: [tokens] where each should go, and sure: how sure that is, 0 to 1
    near:   [tokens, gpus] what else is near it, 0 to 1
    """
    tokens, gpus = near.shape
    room = np.full(gpus, tokens // gpus)
    room[: tokens % gpus] += 1
    score = near.copy()
    score[np.arange(tokens), wished] = 1 + sure
    found = np.full(tokens, -1)
    left = np.arange(tokens)
    while len(left):  # in each round all find room, or a GPU becomes full
        best = score[left].argmax(axis=1)
        order = np.lexsort((left, -score[left, best], best))
        gpu = best[order]
        place = np.arange(len(gpu)) - np.searchsorted(gpu, np.arange(gpus))[gpu]
        fits = place < room[gpu]
        found[left[order[fits]]] = gpu[fits]
        room -= np.bincount(gpu[fits], minlength=gpus)
        score[:, room == 0] = -np.inf
        left = np.flatnonzero(found < 0)
    return found


def _imbalance(gpus_of: IntArray, gpus: int, step_tokens: int) -> FloatArray:
    """[layers] of tokens' GPUs [tokens, layers]."""
    steps = [
        [np.bincount(of_layer, minlength=gpus).max() * gpus / len(step) for of_layer in step.T]
        for step in np.split(gpus_of, range(step_tokens, len(gpus_of), step_tokens))
    ]
    return np.array(steps).mean(axis=0)
