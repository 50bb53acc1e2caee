"""Counts of what the routers of a worker choose, on its device, in tensors allocated once.

Routers write the experts of a step's tokens into ``step``; that is all that happens inside the
forward pass, and it replays with CUDA graphs. After the step its tokens are copied to ``staged``,
without the padding behind them; when that is full, each pair of a token's choices adds one, with
a = b too, which is the load:

    coactivation[phase, layer, a, b] += 1

Of its pairs with those of the next layer, all of them alike, one that is drawn stands for the rest:

    transitions[phase, layer, a, b] += 1

The mean is what a profile counts (``Profile.transitions``), whatever order the router leaves them
in. A token and layer takes top_k^2 + 1 additions.

Memory in bytes, T tokens a step at most, S = STAGED, L layers, E experts, K = top-k:
4 L K (T + S) + 16 L E^2, and 24 PAIRS for a moment: 110 MB for DeepSeek-V3 with T = 8192.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from placer.agent.recording import Counts
from placer.arrays import BoolArray, IntArray

STAGED = 4096  # tokens counted at a time
PAIRS = 2**20  # of choices counted at a time
NOBODY = 2**40  # an id beyond all cells


def quick(tensor: torch.Tensor) -> Any:
    """The same memory, to move a few bytes of: on a CPU numpy is several times as fast as torch."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


class Counters:
    """What a worker's routers chose, counted on ``device``."""

    def __init__(
        self, layers: int, experts: int, top_k: int, max_tokens: int, device: torch.device
    ) -> None:
        self.layers, self.experts, self.top_k, self.device = layers, experts, top_k, device
        self.step = torch.zeros((layers, max_tokens, top_k), dtype=torch.int32, device=device)
        self.staged = torch.zeros((layers, STAGED, top_k), dtype=torch.int32, device=device)
        self._step, self._staged = quick(self.step), quick(self.staged)
        # Of so many tokens, each layer's part of ``step``: most steps have as many as others.
        self._parts = lru_cache(lambda size: [layer[:size] for layer in self.step])
        self._coactivation = self._cells(layers)
        self._transitions = self._cells(layers - 1)
        self._one = torch.ones(1, dtype=torch.int32, device=device)
        self._lots = np.random.default_rng(0)
        once = self._lots.permutation(-(-STAGED // top_k) * top_k) % top_k
        self._drawn = torch.from_numpy(np.concatenate([once, once])).to(device)
        self.tokens = np.zeros(2, dtype=np.int64)

    def _cells(self, layers: int) -> torch.Tensor:
        """[2 * layers * experts * experts + 1]; the last is for ids that are no expert's."""
        size = 2 * layers * self.experts**2 + 1
        return torch.zeros(size, dtype=torch.int32, device=self.device)

    def capture(self, layer: int, expert_ids: torch.Tensor) -> None:
        """Keep a layer's choices. expert_ids: [tokens, top_k] logical experts"""
        size = expert_ids.shape[0]
        if size > self.step.shape[1]:  # padding beyond the most that a step can have
            size, expert_ids = self.step.shape[1], expert_ids[: self.step.shape[1]]
        self._parts(size)[layer].copy_(expert_ids)

    def stage(self, first: int, count: int, at: int) -> None:
        """Set ``count`` tokens of the step aside, from ``first``, at place ``at``."""
        self._staged[:, at : at + count] = self._step[:, first : first + count]

    def fold(self, is_decode: BoolArray) -> None:
        """Count the first staged tokens. is_decode: [tokens] which phase each is in"""
        size = len(is_decode)
        if not size:  # requests may end in a step without tokens
            return
        phase = torch.from_numpy(is_decode).to(self.device).long()
        at_once = max(PAIRS // (size * self.top_k**2), 1)
        for first in range(0, self.layers, at_once):
            ids = self._ids(self.staged[first : first + at_once, :size])
            layer = torch.arange(first, first + len(ids), device=self.device)
            where = (phase * self.layers + layer[:, None]) * self.experts
            rows = (where[:, :, None] + ids).mul_(self.experts)
            self._add(self._coactivation, rows[:, :, :, None] + ids[:, :, None])
        one = self._ids(self.staged[:, :size].gather(2, self._columns(size))[:, :, 0])
        layer = torch.arange(self.layers - 1, device=self.device)
        where = (phase * (self.layers - 1) + layer[:, None]) * self.experts
        self._add(self._transitions, (where + one[:-1]).mul_(self.experts).add_(one[1:]))
        decoded = int(is_decode.sum())
        self.tokens += (size - decoded, decoded)

    def _columns(self, size: int) -> torch.Tensor:
        """[layers, size, 1] a column of each token, each as likely, in every layer by itself.

        Drawn once and then read from another place in every layer: drawing takes longer.
        """
        begin = self._lots.integers(len(self._drawn) // 2, size=self.layers)
        windows = self._drawn.unfold(0, size, 1)
        return windows[torch.from_numpy(begin).to(self.device), :, None]

    def _ids(self, ids: torch.Tensor) -> torch.Tensor:
        """Those that are no expert's made so large that ``_add`` knows them."""
        ids = ids.long()
        return ids.masked_fill_(ids.clamp(0, self.experts - 1) != ids, NOBODY)

    def _add(self, cells: torch.Tensor, where: torch.Tensor) -> None:
        """One to each cell."""
        flat = where.flatten().clamp_(max=len(cells) - 1)  # out of range would end the engine
        cells.scatter_add_(0, flat, self._one.expand(len(flat)))

    def take(self) -> Counts:
        """What was counted since the last time."""
        coactivation = self._on_host(self._coactivation)
        counts = Counts(
            load=np.diagonal(coactivation, axis1=2, axis2=3).copy(),
            transitions=self._on_host(self._transitions),
            coactivation=coactivation,
            tokens=self.tokens.copy(),
        )
        for cells in (self._coactivation, self._transitions):
            cells.zero_()
        self.tokens[:] = 0
        return counts

    def _on_host(self, cells: torch.Tensor) -> IntArray:
        """[2, layers, experts, experts] a copy that no longer changes."""
        copy: IntArray = cells[:-1].to("cpu", copy=True).numpy()
        return copy.reshape(2, -1, self.experts, self.experts)
