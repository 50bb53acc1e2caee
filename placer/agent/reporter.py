"""What leaves and reaches a worker, on a thread of its own: the engine waits for none of it."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from placer.agent.recording import PAUSE_S, Recording
from placer.agent.sampling import Sampling
from placer.clock import ThreadClock
from placer.errors import PlacerError
from placer.plan import Plan
from placer.worker import Status, Worker

EVERY_S = 5.0  # between statuses that say nothing new
POLL_S = 1.0  # between looks for a plan
QUEUE = 8  # pushes that wait at most; the oldest goes first
PATIENCE_S = 20.0  # the longest pause after failures, which double it from POLL_S

log = logging.getLogger("vllm.placer")


class Sink(Protocol):
    """Where recordings go and plans come from. Raises PlacerError where that fails for now.

    sampling: which requests are wanted token by token, as far as is known now; None: none
    """

    sampling: Sampling | None

    def push(self, sequence: int, recording: Recording) -> None:
        """Hand on the worker's ``sequence``-th recording; the same again is taken once."""

    def plan(self, after: int) -> tuple[int, Plan | PlacerError] | None:
        """The newest plan, if its epoch is above ``after``; or what is wrong with it."""

    def report(self, status: Status) -> None: ...


class Source(Protocol):
    """What recordings are taken from."""

    def sample(self, how: Sampling | None) -> None:
        """Which requests to keep token by token from now on; none before it is called."""

    def take(self) -> Recording:
        """What was recorded since the last time."""

    def take_idle(self) -> Recording | None:
        """The same, if it is ready without the engine's thread."""


class Applier(Protocol):
    """What applies plans.

    worker:  what it is now; ``changes`` is another when it, or the group that it is of, is
    epoch, digest: of the plan applied last
    """

    @property
    def worker(self) -> Worker: ...

    @property
    def changes(self) -> Hashable: ...

    @property
    def epoch(self) -> int: ...

    @property
    def digest(self) -> str: ...

    def offer(self, epoch: int, plan: Plan) -> str:
        """Apply ``plan`` when that can be, or say why not."""

    def condition(self) -> str:
        """What keeps it from its work; empty if nothing does."""


class Reporter:
    """A worker's reporter. ``tick`` runs on the engine's thread. condition: what never goes away"""

    def __init__(
        self,
        worker: Worker,
        sink: Sink,
        recorder: Source | None,
        applying: Applier | None,
        clock: ThreadClock,
        condition: str = "",
    ) -> None:
        self.sink, self.recorder, self.applying = sink, recorder, applying
        self._standing, self._clock = condition, clock
        self.status = Status(worker)
        self.due_s = clock.monotonic() + PAUSE_S
        self._waiting: deque[tuple[int, Recording]] = deque()
        self._dropped = self._sequence = self._epoch = 0
        self._changes: Hashable = None if applying is None else applying.changes
        self._found: Plan | PlacerError | None = None  # last
        self._pause_s, self._resume_s = 0.0, 0.0
        self._reported: Status | None = None
        self._report_s = 0.0
        self._said: dict[str, str] = {}  # what went wrong last, by what it was
        self._is_pushing = False
        self._lock = threading.Lock()
        self._work, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="placer", daemon=True)
        self._sample()

    def start(self) -> None:
        self._thread.start()

    def tick(self) -> None:
        """After a step: take what was recorded, if it is time."""
        if self.recorder is not None and self._clock.monotonic() >= self.due_s:
            self._take(self.recorder.take())

    def close(self) -> None:
        """Push what is left, once, before the process ends."""
        if self.recorder is not None:
            self._take(self.recorder.take())
        with self._work:
            self._closed.set()
            self._try(self._push)
            self._try(self._report)

    def _take(self, recording: Recording) -> None:
        self.due_s = self._clock.monotonic() + recording.pause_s
        if not recording.counts.tokens.any():
            return
        with self._lock:
            # Numbered here, so that what is dropped leaves a gap and no number is used twice.
            self._sequence += 1
            self._waiting.append((self._sequence, recording))
            if len(self._waiting) > QUEUE:
                del self._waiting[1 if self._is_pushing else 0]
                self._dropped += 1

    def _run(self) -> None:
        with suppress(AttributeError, OSError):
            # The engine pins its threads, and this one was born on one of their cores.
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        while True:
            with self._work:
                self._round()
            if self._clock.wait(self._closed, POLL_S):
                return

    def _round(self) -> None:
        self._try(self._take_rest)
        self._try(self._renew)
        if self._clock.monotonic() < self._resume_s:
            return
        worked = self._try(self._report)  # first: a controller knows a worker by that
        worked = self._try(self._push) and worked
        worked = self._try(self._fetch) and worked
        self._pause_s = 0.0 if worked else min(max(2 * self._pause_s, POLL_S), PATIENCE_S)
        self._resume_s = self._clock.monotonic() + self._pause_s

    def _take_rest(self) -> None:
        if self.recorder is not None and (rest := self.recorder.take_idle()):
            self._take(rest)

    def _push(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                sequence, recording = self._waiting[0]
                self._is_pushing = True
            try:
                self.sink.push(sequence, recording)
            finally:
                self._is_pushing = False
            tokens = self.status.tokens + int(recording.counts.tokens.sum())
            self.status = replace(self.status, tokens=tokens)
            with self._lock:
                self._waiting.popleft()

    def _fetch(self) -> None:
        if self.applying is None or (found := self.sink.plan(self._epoch)) is None:
            return
        self._epoch, self._found = found
        self._offer(self.applying, self._found)

    def _renew(self) -> None:
        """Where the engine's width changed, the newest plan may be for the new one."""
        if self.applying is None or self.applying.changes == self._changes:
            return
        self._changes = self.applying.changes
        before = self.status
        self.status = Status(
            self.applying.worker,
            tokens=before.tokens,
            dropped=before.dropped,
            condition=before.condition,
        )
        if self._found is not None:
            self._offer(self.applying, self._found)

    def _offer(self, applying: Applier, plan: Plan | PlacerError) -> None:
        reason = str(plan) if isinstance(plan, PlacerError) else applying.offer(self._epoch, plan)
        if reason:
            log.warning("placer: plan %d is refused, the map stays: %s", self._epoch, reason)
            self.status = replace(self.status, refused_epoch=self._epoch, refused=reason)

    def _report(self) -> None:
        condition = self._standing
        if self.applying is not None:
            if self.applying.epoch > self.status.epoch:
                log.info("placer: plan %d is applied", self.applying.epoch)
            self.status = replace(
                self.status, epoch=self.applying.epoch, digest=self.applying.digest
            )
            condition = self.applying.condition() or condition
        if condition and not self.status.condition:
            log.error("placer: %s", condition)
        self.status = replace(self.status, dropped=self._dropped, condition=condition)
        now_s = self._clock.monotonic()
        if self.status != self._reported or now_s >= self._report_s:
            self.sink.report(self.status)
            self._reported, self._report_s = self.status, now_s + EVERY_S
            self._sample()

    def _sample(self) -> None:
        if self.recorder is not None:
            self.recorder.sample(self.sink.sampling)

    def _try(self, what: Callable[[], None]) -> bool:
        """Whether it worked. Whatever goes wrong here stays here: serving goes on."""
        try:
            what()
        except Exception as error:
            said = str(error) or repr(error)
            if said not in self._said.values():
                log.warning("placer: %s; serving goes on, will try again", said)
            self._said[what.__name__] = said
            return False
        self._said.pop(what.__name__, None)
        return True
