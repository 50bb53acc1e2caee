"""What one worker's routers chose: counted, and of some requests kept token by token."""

import threading
from collections.abc import Collection, Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from placer.agent.recording import PHASES, Recording
from placer.agent.sampling import Sampler, Sampling
from placer.agent.stopwatch import Stopwatch
from placer.agent.vllm.counters import STAGED, Counters, quick
from placer.arrays import IntArray
from placer.clock import Readings

SKIPPED: list[int] = []  # the rows of requests that are not sampled
IDLE_S = 1.0  # without a step, after which other threads may touch the device's counters


class Batch(NamedTuple):
    """One step of the engine. R requests, whose tokens lie end to end; padding comes after them.

    requests:  their ids
    scheduled: tokens of each in this step, ``total`` of all
    positions: [R] position of its first token in the request
    prompts:   [R] tokens of its prompt: those from there on are decoded
    token_ids: [tokens] on the device
    new, finished: requests that begin with this step, and that ended before it
    """

    requests: list[str]
    scheduled: Mapping[str, int]
    total: int
    positions: IntArray
    prompts: IntArray
    token_ids: torch.Tensor
    new: Collection[str]
    finished: Collection[str]

    @property
    def phase(self) -> str:
        """Prefill, if a token of a prompt is in it."""
        return PHASES[int((self.positions >= self.prompts).all())]

    @property
    def sizes(self) -> IntArray:
        """[R] tokens of each request."""
        return np.array([self.scheduled[name] for name in self.requests], dtype=np.int64)


class StepRecorder:
    """Records a worker's steps. ``observe`` runs on the engine's thread, ``take_idle`` on another.

    A step costs the engine a few copies; all else is done for some thousand tokens at once.
    """

    def __init__(self, counters: Counters, clock: Readings) -> None:
        self.counters, self._clock = counters, clock
        self.token_ids = torch.zeros(STAGED, dtype=torch.int32, device=counters.device)
        self._token_ids = quick(self.token_ids)
        now_s = self._clock.monotonic()
        self.sampler = Sampler(counters.layers * counters.top_k * 4, now_s)
        self.stopwatch = Stopwatch()
        self._batches: list[tuple[float, Batch]] = []  # when they came, those that are staged
        self._at = 0  # staged tokens
        self._requests = np.zeros(2, dtype=np.int64)
        self._since_s: float | None = None  # the first step, or the last recording
        self._away_s: float | None = None  # since when no step was seen
        self._stepped_s = now_s
        self._lock = threading.Lock()

    def observe(self, batch: Batch, begun_s: float) -> None:
        """Take in what ``counters.capture`` saw during the step that ran since ``begun_s``."""
        with self._lock:
            self._stepped_s = self._clock.monotonic()
            if self._since_s is None:
                self._since_s = begun_s
            if self._away_s is not None:
                self._since_s += begun_s - self._away_s
                self._away_s = None
            self.stopwatch.begin(begun_s, batch.scheduled)
            total, row = batch.total, 0
            if total:
                self.stopwatch.end(begun_s, self._stepped_s, batch.phase, batch.requests)
            else:
                self._batches.append((self._stepped_s, batch))
            while row < total:
                size = min(total - row, STAGED - self._at)
                self.counters.stage(row, size, self._at)
                here = slice(self._at, self._at + size)
                self._token_ids[here] = quick(batch.token_ids)[row : row + size]
                part = batch if size == total else _cut(batch, row, size)
                self._batches.append((self._stepped_s, part))
                self._at, row = self._at + size, row + size
                if self._at == STAGED:
                    self._fold()

    def skip(self, batch: Batch, begun_s: float) -> None:
        """A step that ran since ``begun_s`` and was not seen: as if there had been no time."""
        with self._lock:
            self._stepped_s = self._clock.monotonic()
            if self._since_s is None:
                return
            self.stopwatch.begin(begun_s, ())
            if self._away_s is None:
                self._away_s = begun_s
            # Requests that end have no more to come.
            self._batches.append((self._stepped_s, _ending(batch)))

    def sample(self, how: Sampling | None) -> None:
        """Which requests to keep token by token from now on; none before it is called."""
        with self._lock:
            self.sampler.ask(how)

    def take(self) -> Recording:
        """What was recorded since the last time; on the engine's thread."""
        with self._lock:
            return self._take()

    def take_idle(self) -> Recording | None:
        """The same from another thread, if no step ran for a while and there is something."""
        with self._lock:
            now_s = self._clock.monotonic()
            if now_s - self._stepped_s < IDLE_S or not (
                self._batches or self.counters.tokens.any()
            ):
                return None
            if self.counters.device.type != "cpu":
                torch.accelerator.synchronize(self.counters.device)
            return self._take()

    def _take(self) -> Recording:
        self._fold()
        now_s = self._clock.monotonic()
        end_s = now_s if self._away_s is None else self._away_s
        window_s = 0.0 if self._since_s is None else end_s - self._since_s
        self._since_s = now_s
        if self._away_s is not None:
            self._away_s = now_s
        requests, self._requests = self._requests, np.zeros(2, dtype=np.int64)
        paces = self.stopwatch.take(window_s)
        return Recording(self.counters.take(), self.sampler.take(), requests, window_s, paces)

    def _fold(self) -> None:
        """Count what is staged, and keep the tokens of sampled requests."""
        if not self._batches:
            return
        counts = np.concatenate([batch.sizes for _, batch in self._batches])
        positions = np.concatenate([batch.positions for _, batch in self._batches])
        prompts = np.concatenate([batch.prompts for _, batch in self._batches])
        starts = np.cumsum(counts) - counts
        is_decode = np.repeat(positions - prompts - starts, counts) + np.arange(self._at) >= 0
        self.counters.fold(is_decode)
        self._requests[1] += ((positions <= prompts) & (prompts < positions + counts)).sum()
        self._sample(starts.tolist(), counts.tolist(), positions.tolist(), prompts.tolist())
        self._batches, self._at = [], 0

    def _sample(
        self, starts: list[int], counts: list[int], positions: list[int], prompts: list[int]
    ) -> None:
        """Hand staged tokens of sampled requests on, of each request at once."""
        at, sampler = 0, self.sampler
        runs: dict[tuple[str, int], list[int]] = {}  # request, first position -> staged rows
        last: dict[str, tuple[list[int], int]] = {}  # request -> its run, the position after it
        for now_s, batch in self._batches:
            self._requests[0] += len(batch.new)
            for request in batch.requests:
                position, count = positions[at], counts[at]
                if request in batch.new:
                    sampler.begin(request, position, prompts[at], now_s)
                run, following = last.get(request, (None, 0))
                if run is None or following != position:
                    run = runs[request, position] = [] if sampler.wants(request) else SKIPPED
                if run is not SKIPPED:
                    run.extend(range(starts[at], starts[at] + count))
                last[request] = run, position + count
                at += 1
        kept = {key: rows for key, rows in runs.items() if rows}
        if kept:
            where = torch.tensor(list(chain(*kept.values())), device=self.counters.device)
            expert_ids = self.counters.staged[:, where].transpose(0, 1).cpu().numpy()
            is_told = sampler.how is not None and sampler.how.token_ids
            token_ids = self.token_ids[where].cpu().numpy() if is_told else None
            first = 0
            for (request, position), rows in kept.items():
                mine = slice(first, first + len(rows))
                tokens = None if token_ids is None else token_ids[mine]
                sampler.add(request, position, expert_ids[mine], tokens)
                first += len(rows)
        for _, batch in self._batches:
            sampler.finish(batch.finished)


def _cut(batch: Batch, row: int, size: int) -> Batch:
    """A batch's tokens from ``row`` on, ``size`` of them; it begins and ends requests once."""
    sizes = batch.sizes
    ends = np.cumsum(sizes)
    starts = ends - sizes
    first, end = np.maximum(starts, row), np.minimum(ends, row + size)
    kept = np.flatnonzero(end > first)
    requests = [batch.requests[at] for at in kept]
    return batch._replace(
        requests=requests,
        scheduled=dict(zip(requests, (end - first)[kept].tolist(), strict=True)),
        total=size,
        positions=(batch.positions + first - starts)[kept],
        prompts=batch.prompts[kept],
        new=[
            name
            for name, start in zip(requests, (first - starts)[kept], strict=True)
            if start == 0 and name in batch.new
        ],
        finished=() if row else batch.finished,
    )


def _ending(batch: Batch) -> Batch:
    """Only which requests ended before it."""
    none = np.zeros(0, dtype=np.int64)
    return Batch([], {}, 0, none, none, batch.token_ids, (), batch.finished)
