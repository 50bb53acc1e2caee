"""Seconds a step of experts that a GPU's memory has no room for: loaded when they are needed, but
for those that are used most, which are kept, or ahead, by what the layer before tells.

Each GPU loads its own experts from its host's memory. The expected step: an expert that n of its
tokens use is needed with probability 1 - exp(-n), as in cost/compute.py, and asked for ahead by the
n' tokens of which it is foretold with 1 - exp(-n'). What is asked for ahead hides behind the layer
before, as long as that takes; what nobody foretold is loaded when it is needed.
"""

from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.model import ModelShape
from placer.placement import Placement
from placer.prediction.recall import TOKENS_AT_A_TIME, among, next_experts
from placer.tables.experts import evidence, followers
from placer.trace import Trace

HOST_BYTES_PER_S = 64e9  # PCIe 5.0 x16, one way


@dataclass(frozen=True, slots=True)
class Offloaded:
    """Seconds a step that loading takes, as long as it is waited for: of experts kept blind to the
    traffic; of the most used ones kept; of experts kept blind, but asked for ahead."""

    blind_s: float
    cached_s: float
    prefetched_s: float


def offloaded(
    model: ModelShape,
    placement: Placement,
    fit: Trace,
    judged: Trace,
    room: int,
    step_tokens: int,
    layer_s: float,
) -> Offloaded:
    """
    room:    experts of a layer that each GPU keeps
    layer_s: seconds that a layer takes besides
    """
    scale = step_tokens / judged.tokens
    needed = -np.expm1(-judged.load * scale)
    told, right = _foretold(fit, judged)
    asked = -np.expm1(-told * scale)
    found = -np.expm1(-right * scale)
    on_gpu = placement.held_in(placement.gpus)
    blind = _missing(on_gpu, np.zeros(fit.load.shape), room)
    each_s = model.expert_bytes / HOST_BYTES_PER_S

    def seconds(missing: FloatArray, chance: FloatArray) -> FloatArray:
        """[layers] of the slowest GPU."""
        slowest: FloatArray = np.einsum("leg,le->lg", missing, chance).max(axis=1) * each_s
        return slowest

    ahead = np.maximum(seconds(blind, asked) - layer_s, 0) + seconds(blind, needed - found)
    return Offloaded(
        blind_s=float(seconds(blind, needed).sum()),
        cached_s=float(seconds(_missing(on_gpu, fit.load, room), needed).sum()),
        prefetched_s=float(ahead.sum()),
    )


def _foretold(fit: Trace, judged: Trace) -> tuple[IntArray, IntArray]:
    """[layers, experts] tokens of which each expert is foretold, and those of them that use it;
    none at the first layer."""
    says = evidence(followers(fit), fit.load, fit.tokens, fit.top_k).astype(np.float32)
    told = np.zeros((judged.layers, judged.experts), dtype=np.int64)
    right = np.zeros_like(told)
    for start in range(0, judged.tokens, TOKENS_AT_A_TIME):
        ids = judged.expert_ids[start : start + TOKENS_AT_A_TIME]
        for layer in range(1, judged.layers):
            likeliest = next_experts(ids[:, layer - 1], says[layer - 1], judged.top_k)
            hit = among(likeliest, ids[:, layer])
            told[layer] += np.bincount(likeliest.ravel(), minlength=judged.experts)
            right[layer] += np.bincount(likeliest[hit], minlength=judged.experts)
    return told, right


def _missing(on_gpu: BoolArray, load: FloatArray | IntArray, room: int) -> FloatArray:
    """[layers, experts, gpus] 1 for those of each GPU that it keeps no copy of: it has ``room`` for
    those with the largest load, of equal ones those with the lowest ids."""
    worth = np.where(on_gpu, load[:, :, None].astype(np.float64), -1.0)
    order = np.argsort(-worth, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    missing: FloatArray = (on_gpu & (rank >= room)).astype(np.float64)
    return missing
