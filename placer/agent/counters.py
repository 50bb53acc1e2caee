"""Counts of what the routers of a worker choose, on its device, in tensors allocated once.

Routers write the experts of a step's tokens into ``step``; that is all that happens inside the
forward pass, and it replays with CUDA graphs. After the step the tokens that count are copied to
``staged``, with their phase; when it is full, one-hot products turn it into counts:

    load += sum(used)    coactivation += used^T used    transitions += before^T first

with ``used`` [tokens, experts] a layer's choices and ``before``, ``first`` its and the next layer's
top-1. A token and layer takes 4 experts^2 additions: 0.04% of DeepSeek-V3's arithmetic in a layer.

Memory in bytes, T tokens a step at most, S = STAGED, L layers, E experts, K = top-k:
4 L K (T + S) + 12 S E + 8 L E (1 + 2 E): 100 MB for DeepSeek-V3 with T = 8192.
"""

import numpy as np
import torch

from placer.agent.recording import Counts
from placer.arrays import BoolArray, FloatArray

STAGED = 4096  # tokens counted at a time


class Counters:
    """[layers, experts] counters of one worker, on ``device``."""

    def __init__(
        self, layers: int, experts: int, top_k: int, max_tokens: int, device: torch.device
    ) -> None:
        self.layers, self.experts, self.top_k, self.device = layers, experts, top_k, device

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.step = zeros(layers, max_tokens, top_k, dtype=torch.int32)
        self.staged = zeros(layers, STAGED, top_k, dtype=torch.int32)
        self._of_layer = list(self.step)
        self.load = zeros(2, layers, experts)
        self.transitions = zeros(2, layers - 1, experts, experts)
        self.coactivation = zeros(2, layers, experts, experts)
        self.used, self.first, self.before = (zeros(STAGED, experts) for _ in range(3))
        self.tokens = np.zeros(2, dtype=np.int64)

    def capture(self, layer: int, expert_ids: torch.Tensor) -> None:
        """Keep a layer's choices. expert_ids: [tokens, top_k] logical experts"""
        self._of_layer[layer][: expert_ids.shape[0]].copy_(expert_ids)

    def stage(self, first: int, count: int, at: int) -> None:
        """Set ``count`` tokens of the step aside, from ``first``, at place ``at``."""
        self.staged[:, at : at + count].copy_(self.step[:, first : first + count])

    def fold(self, is_decode: BoolArray) -> None:
        """Count the first staged tokens. is_decode: [tokens] which phase each is in"""
        for phase, mask in enumerate((~is_decode, is_decode)):
            if count := int(mask.sum()):
                ids = self.staged[:, : len(mask)]
                if count < len(mask):
                    ids = ids[:, torch.from_numpy(np.flatnonzero(mask)).to(self.device)]
                self._count(phase, ids)
                self.tokens[phase] += count

    def _count(self, phase: int, ids: torch.Tensor) -> None:
        used, first, before = (t[: ids.shape[1]] for t in (self.used, self.first, self.before))
        for layer in range(self.layers):
            chosen = ids[layer].long()
            used.zero_().scatter_(1, chosen, 1.0)
            first.zero_().scatter_(1, chosen[:, :1], 1.0)
            self.load[phase, layer] += used.sum(dim=0)
            self.coactivation[phase, layer].addmm_(used.T, used)
            if layer:
                self.transitions[phase, layer - 1].addmm_(before.T, first)
            first, before = before, first

    def take(self) -> Counts:
        """What was counted since the last time."""
        counts = Counts(
            load=_on_host(self.load),
            transitions=_on_host(self.transitions),
            coactivation=_on_host(self.coactivation),
            tokens=self.tokens.copy(),
        )
        for counter in (self.load, self.transitions, self.coactivation):
            counter.zero_()
        self.tokens[:] = 0
        return counts


def _on_host(tensor: torch.Tensor) -> FloatArray:
    """A copy that no longer changes."""
    copy: FloatArray = tensor.to("cpu", copy=True).numpy()
    return copy
