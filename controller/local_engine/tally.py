"""What the routers chose, counted from the steps that were completed."""

import threading
from collections.abc import Iterable, Sequence

import numpy as np

from controller.local_engine.model.weights import Sizes
from controller.local_engine.ranks.messages import Stepped
from controller.local_engine.requests import Plan, Running
from placer.agent.recording import PHASES, Counts, Recording
from placer.agent.sampling import Sampler, Sampling
from placer.agent.stopwatch import Stopwatch
from placer.arrays import IntArray
from placer.clock import Readings


class Tally:
    """What an engine's routers chose. One thread counts, any takes."""

    def __init__(self, sizes: Sizes, clock: Readings) -> None:
        self._sizes, self._clock = sizes, clock
        self._lots = np.random.default_rng(0)
        self._lock = threading.Lock()
        self._since_s = self._clock.monotonic()
        self._sampler = Sampler(sizes.layers * sizes.top_k * 4, self._since_s)
        self._stopwatch = Stopwatch()
        self._clear()

    def _clear(self) -> None:
        layers, experts = self._sizes.layers, self._sizes.experts
        self._coactivation = np.zeros((2, layers, experts, experts), dtype=np.int64)
        self._transitions = np.zeros((2, layers - 1, experts, experts), dtype=np.int64)
        self._tokens = np.zeros(2, dtype=np.int64)
        self._requests = np.zeros(2, dtype=np.int64)

    def sample(self, how: Sampling | None) -> None:
        """Which requests to keep token by token from now on; none before it is called."""
        with self._lock:
            self._sampler.ask(how)

    def begin(self, admitted: Iterable[Running]) -> None:
        with self._lock:
            for one in admitted:
                self._requests[0] += 1
                prompt = len(one.request.prompt)
                self._sampler.begin(one.name, 0, prompt, self._clock.monotonic(), one.rank)

    def step(self, step: Plan, answers: Sequence[Stepped], seconds: float) -> None:
        """Count a step and its tokens, before their requests advance."""
        pieces = [piece for of_rank in step for piece in of_rank]
        experts = np.concatenate([answer.experts for answer in answers])
        phases = [one.decodes for one, piece in pieces for _ in piece.tokens]
        with self._lock:
            self._count(experts, np.array(phases, dtype=np.int64))
            self._stopwatch.count(PHASES[min(phases)], seconds)
            row = 0
            for one, piece in pieces:
                size = len(piece.tokens)
                # Copied, since a view would keep the whole step.
                ids, how = experts[row : row + size].copy(), self._sampler.how
                tokens = np.array(piece.tokens, np.int32) if how and how.token_ids else None
                self._sampler.add(one.name, piece.start, ids, tokens)
                self._requests[1] += piece.start == len(one.request.prompt)
                row += size

    def finish(self, done: Iterable[Running]) -> None:
        with self._lock:
            self._sampler.finish([one.name for one in done])

    def take(self) -> Recording:
        """What was counted since the last time, and the requests that ended."""
        with self._lock:
            now_s = self._clock.monotonic()
            window_s, self._since_s = now_s - self._since_s, now_s
            load = np.diagonal(self._coactivation, axis1=2, axis2=3).copy()
            counts = Counts(load, self._transitions, self._coactivation, self._tokens)
            sequences, paces = self._sampler.take(), self._stopwatch.take(window_s)
            recording = Recording(counts, sequences, self._requests, window_s, paces)
            self._clear()
            return recording

    def _count(self, experts: IntArray, phase: IntArray) -> None:
        """experts: [tokens, layers, top_k]; phase: [tokens] 0 for prompts, 1 for decoding"""
        layer = np.arange(self._sizes.layers)
        pairs = (phase[:, None, None, None], layer[:, None, None])
        np.add.at(self._coactivation, (*pairs, experts[:, :, :, None], experts[:, :, None]), 1)
        # One pair that is drawn stands for all, as in placer.agent.vllm.counters.
        column = self._lots.integers(self._sizes.top_k, size=experts.shape[:2])
        one = np.take_along_axis(experts, column[:, :, None], axis=2)[:, :, 0]
        np.add.at(self._transitions, (phase[:, None], layer[:-1], one[:, :-1], one[:, 1:]), 1)
        self._tokens += np.bincount(phase, minlength=2)
