"""LocalEngine: a small model served by real processes, one a rank, on this machine."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from controller.local_engine.expert_map import ExpertMap, fresh
from controller.local_engine.page_moves import NOTHING, Migration
from controller.local_engine.rank_messages import Serve, Step
from controller.local_engine.ranks import ATTEMPTS, EngineError, RankLostError, Ranks
from controller.local_engine.requests import Batch, Plan, Request, checked
from controller.local_engine.shared_memory import Folder, Layout, Memory
from controller.local_engine.tally import Tally
from controller.local_engine.weights import Dense, Float32, read_sizes, read_weights
from controller.migration.commands import Command, Outcome
from controller.samples import Sample
from placer import arrays
from placer.agent.recording import Recording
from placer.clock import SystemClock
from placer.errors import PlacementError
from placer.files.specs import read_model
from placer.placement import Placement, linear, slots_remedy

SUPERVISE_S = 0.5  # how often an idle engine looks after its ranks


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """running, waiting: requests; steps: completed; restarts: ranks that were started again"""

    running: int
    waiting: int
    steps: int
    restarts: int


class LocalEngine:
    """Serves the Qwen3-MoE in the folder ``model`` on ``ranks`` processes, greedily.

    slots:   physical experts a layer, of all ranks; as many as experts if not given
    scratch: pages that a rank has in each layer besides its slots, for copies on their way

    A thread runs step after step, and between two of them what else there is to do with ranks. A
    rank that dies is started again on the same memory, and the step is made again: it writes what
    it wrote. Everything but ``close`` may be called from any thread.
    """

    def __init__(self, model: Path, ranks: int, slots: int | None = None, scratch: int = 2) -> None:
        self.shape, self._clock = read_model(str(model / "config.json")), SystemClock()
        self._sizes = read_sizes(model)
        slots = self._sizes.experts if slots is None else slots
        _check_counts(ranks, slots, scratch, self._sizes.experts)
        dense, pages = read_weights(model, self._sizes)
        layout = Layout(self._sizes, ranks, slots // ranks + scratch)
        served = fresh(linear(self._sizes.layers, slots, self._sizes.experts, ranks))
        digests = [[arrays.digest(page) for page in row] for row in pages]
        self._folder = Folder(layout)
        try:
            _fill(Memory(self._folder.path, layout), dense, pages, served)
            self._ranks = Ranks(self._folder.path, layout, (Serve(served), NOTHING))
        except BaseException:
            self._folder.close()
            raise
        self._migration = Migration(served, layout, digests, self._ranks)
        self._batch, self._tally = Batch(ranks), Tally(self._sizes, self._clock)
        self._jobs: deque[Callable[[], None]] = deque()
        self._steps = self._failures = 0
        self._over = ""  # why nothing is served any more
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="local-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, prompt: Sequence[int], max_tokens: int) -> Request:
        """Raises RequestError for what cannot be served."""
        request = checked(prompt, max_tokens, self._sizes, self._clock)
        with self._wake:
            if self._over:
                raise EngineError(self._over)
            self._batch.waiting.append(request)
            self._wake.notify()
        return request

    @property
    def placement(self) -> Placement:
        """The map that serves now."""
        return self._migration.served.placement

    def carry_out(self, command: Command) -> Outcome:
        return self._migration.carry_out(command, self._between_steps)

    def record(self) -> Recording:
        """What routers chose since the last time."""
        return self._tally.take()

    def pids(self) -> list[int]:
        """Of the ranks' processes."""
        return self._ranks.pids()

    @property
    def status(self) -> EngineStatus:
        batch = self._batch
        return EngineStatus(batch.running, len(batch.waiting), self._steps, self._ranks.restarts)

    @property
    def sample(self) -> Sample:
        """What vLLM's /metrics would say of it."""
        with self._wake:
            return self._batch.sample

    def close(self) -> None:
        """End all processes and free their memory; requests under way fail."""
        with self._wake:
            self._over = self._over or "the engine was closed: start another"
            self._wake.notify()
        self._thread.join()
        self._ranks.close()
        self._folder.close()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:  # whatever it is, nobody may wait for ever
            self._over = f"the engine has ended: {error}"
        with self._wake:
            self._batch.fail_all(self._over)
            jobs, self._jobs = self._jobs, deque()
        for job in jobs:
            job()

    def _turn(self) -> bool:
        """A job if there is one, and a step if there is work. Whether the engine goes on"""
        with self._wake:
            if not (self._jobs or self._batch.waiting or self._batch.running or self._over):
                self._wake.wait(SUPERVISE_S)
            if self._over:
                return False
            job = self._jobs.popleft() if self._jobs else None
            self._tally.begin(self._batch.admit())
        if job:
            job()
        self._step()
        return True

    def _step(self) -> None:
        step = self._batch.plan()
        try:
            if any(step):
                self._compute(step)
            else:
                self._ranks.supervise()
            self._failures = 0
        except RankLostError as lost:
            self._failures += 1
            if self._failures > ATTEMPTS:
                raise EngineError(
                    f"ranks {lost.ranks} died {ATTEMPTS} times in a step: see the engine's stderr"
                ) from lost
            self._ranks.repair()

    def _compute(self, step: Plan) -> None:
        """One step of all ranks, and what follows from it."""
        begun_s = self._clock.monotonic()
        answers = self._ranks.ask(
            {rank: Step(tuple(piece for _, piece in pieces)) for rank, pieces in enumerate(step)}
        )
        in_order = [answers[rank] for rank in range(len(step))]
        self._tally.step(step, in_order, self._clock.monotonic() - begun_s)
        with self._wake:
            self._tally.finish(self._batch.advance(step, in_order))
            self._steps += 1

    def _between_steps(self, work: Callable[[], Any]) -> float:
        """See migration.BetweenSteps."""
        future: Future[float] = Future()

        def job() -> None:
            began_s = self._clock.monotonic()
            try:
                if self._over:
                    raise EngineError(self._over)
                try:
                    work()
                except RankLostError:
                    self._ranks.repair()
                    raise
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(self._clock.monotonic() - began_s)

        with self._wake:
            if self._over:
                raise EngineError(self._over)
            self._jobs.append(job)
            self._wake.notify()
        return future.result()


def _check_counts(ranks: int, slots: int, scratch: int, experts: int) -> None:
    if ranks < 1:
        raise PlacementError(f"ranks is {ranks}: give 1 or more")
    if slots < experts:
        raise PlacementError(f"{slots} slots do not hold {experts} experts: give as many or more")
    if slots % ranks:
        raise PlacementError(slots_remedy(slots, ranks, experts))
    if scratch < 0:
        raise PlacementError(f"scratch is {scratch}: give 0 pages or more")


def _fill(memory: Memory, dense: Dense, pages: Float32, served: ExpertMap) -> None:
    """Put the weights where ranks look for them."""
    for name, weight in dense.items():
        memory.dense[name][...] = weight
    for layer, row in enumerate(served.table.tolist()):
        for slot, expert in enumerate(row):
            rank, page = slot // served.slots_per_rank, served.pages[layer, slot]
            memory.pages[rank, layer, page] = pages[layer, expert]
