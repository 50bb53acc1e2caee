"""What one worker's routers chose: counted, and of some requests kept token by token."""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from placer.agent.counters import STAGED, Counters
from placer.agent.recording import Recording
from placer.agent.sampling import Sampler
from placer.arrays import IntArray

IDLE_S = 1.0  # without a step, after which other threads may touch the device's counters


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One step of the engine. R requests, whose tokens lie end to end; padding comes after them.

    requests:  their ids
    counts:    [R] tokens of each in this step
    positions: [R] position of its first token in the request
    prompts:   [R] tokens of its prompt: those from there on are decoded
    token_ids: [tokens] on the device
    new, finished: requests that begin with this step, and that ended before it
    """

    requests: list[str]
    counts: IntArray
    positions: IntArray
    prompts: IntArray
    token_ids: torch.Tensor
    new: Collection[str]
    finished: Collection[str]


@dataclass(frozen=True, slots=True)
class _Part:
    """Staged tokens of a sampled request, by their place."""

    request: str
    position: int
    first: int
    count: int


class Recorder:
    """Of one worker. ``observe`` runs on the engine's thread, ``take_idle`` on another."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.token_ids = torch.zeros(STAGED, dtype=torch.int64, device=counters.device)
        size = counters.layers * counters.top_k * 2
        self.sampler = Sampler(size, time.monotonic())
        self._is_decode = np.zeros(STAGED, dtype=bool)
        self._at = 0  # staged tokens
        self._parts: list[_Part] = []
        self._ended: list[str] = []  # sampled requests whose last tokens may still be staged
        self._requests = np.zeros(2, dtype=np.int64)
        self._since_s = self._stepped_s = time.monotonic()
        self._lock = threading.Lock()

    def observe(self, batch: Batch) -> None:
        """Take in what ``counters.capture`` saw during the step that just ran."""
        with self._lock:
            self._stepped_s = time.monotonic()
            self._ended.extend(filter(self.sampler.wants, batch.finished))
            counts, ends = batch.counts, np.cumsum(batch.counts)
            starts = ends - counts
            for at, request in enumerate(batch.requests if batch.new else ()):
                if request in batch.new:
                    self.sampler.begin(request, int(batch.positions[at]), self._stepped_s)
            sampled = [at for at, name in enumerate(batch.requests) if self.sampler.wants(name)]
            decodes = (batch.positions <= batch.prompts) & (
                batch.prompts < batch.positions + counts
            )
            self._requests += (len(batch.new), decodes.sum())
            ahead = np.repeat(batch.positions - starts - batch.prompts, counts)
            is_decode = ahead + np.arange(len(ahead)) >= 0

            row = 0
            while row < len(is_decode):
                size = min(len(is_decode) - row, STAGED - self._at)
                here, there = slice(self._at, self._at + size), slice(row, row + size)
                self.counters.stage(row, size, self._at)
                self._is_decode[here] = is_decode[there]
                if sampled:
                    self.token_ids[here].copy_(batch.token_ids[there])
                for at in sampled:
                    first, end = max(int(starts[at]), row), min(int(ends[at]), row + size)
                    if first < end:
                        position = int(batch.positions[at] - starts[at]) + first
                        place = self._at + first - row
                        self._parts.append(_Part(batch.requests[at], position, place, end - first))
                self._at, row = self._at + size, row + size
                if self._at == STAGED:
                    self._fold()

    def take(self) -> Recording:
        """What was recorded since the last time; on the engine's thread."""
        with self._lock:
            return self._take()

    def take_idle(self) -> Recording | None:
        """The same from another thread, if no step ran for a while and there is something."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._stepped_s < IDLE_S or not (self._at or self.counters.tokens.any()):
                return None
            if self.counters.device.type != "cpu":
                torch.accelerator.synchronize(self.counters.device)
            return self._take()

    def _take(self) -> Recording:
        self._fold()
        now_s = time.monotonic()
        window_s, self._since_s = now_s - self._since_s, now_s
        requests, self._requests = self._requests, np.zeros(2, dtype=np.int64)
        return Recording(self.counters.take(), self.sampler.take(), requests, window_s)

    def _fold(self) -> None:
        self.counters.fold(self._is_decode[: self._at])
        if self._parts:
            rows = np.concatenate([np.arange(p.first, p.first + p.count) for p in self._parts])
            where = torch.from_numpy(rows).to(self.counters.device)
            expert_ids = self.counters.staged[where].cpu().numpy()
            token_ids = self.token_ids[where].cpu().numpy()
            first = 0
            for part in self._parts:
                here = slice(first, first + part.count)
                self.sampler.add(part.request, part.position, expert_ids[here], token_ids[here])
                first += part.count
            self._parts = []
        self._at = 0
        self.sampler.finish(self._ended)
        self._ended = []
