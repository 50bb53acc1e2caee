"""LocalEngine: a small model served by real processes, one a rank, on this machine."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from controller.elastic.devices import Devices, LostDeviceError
from controller.local_engine.expert_map import ExpertMap, check_counts, fresh
from controller.local_engine.loading import hold, read_all
from controller.local_engine.model.weights import ITEM, Checkpoint, read_sizes
from controller.local_engine.page_moves import Migration
from controller.local_engine.ranks.exchange import layout
from controller.local_engine.ranks.group import ATTEMPTS, EngineError, RankLostError, Ranks
from controller.local_engine.ranks.messages import Pace, Step
from controller.local_engine.ranks.standbys import Standbys
from controller.local_engine.recovery import SUPERVISE_S, look_after, survive
from controller.local_engine.requests import Batch, Plan, Request, checked
from controller.local_engine.tally import Tally
from controller.migration.commands import Command, Outcome
from controller.samples import Sample, expose
from placer.agent.recording import Recording
from placer.agent.sampling import Sampling
from placer.clock import SystemClock
from placer.files.specs import read_model
from placer.memory.memfd import Memfd
from placer.placement import Placement, linear


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """running, waiting: requests; steps: completed; restarts: ranks that were started again"""

    running: int
    waiting: int
    steps: int
    restarts: int


class LocalEngine:
    """Serves the Qwen3-MoE in the folder ``model`` on ``ranks`` processes, greedily.

    slots:    physical experts a layer, of all ranks; as many as experts if not given
    scratch:  pages that a rank has for each layer besides its slots, for copies on their way
    smallest: ranks that the engine must be able to shrink to: arenas have room for that
    standbys: processes that wait to be ranks; spares: devices that wait, with memory behind them
    rate:     bytes a second that a device may copy for another width; 0 for as many as can be
    pace:     of devices that these processes stand for

    A thread runs step after step, and between two of them what else there is to do with ranks. A
    rank that dies is replaced on the same memory, and the step is made again: it writes what it
    wrote. Where a device's memory is gone, the others take over its experts, and its requests are
    computed again. Everything but ``close`` may be called from any thread.
    """

    def __init__(
        self,
        model: Path,
        ranks: int,
        slots: int | None = None,
        scratch: int = 2,
        *,
        smallest: int = 0,
        standbys: int = 0,
        spares: int = 0,
        rate: float = 0.0,
        pace: Pace | None = None,
    ) -> None:
        shape, self._clock = read_model(str(model / "config.json")), SystemClock()
        checkpoint = Checkpoint(model, read_sizes(model))
        dense = checkpoint.dense_size
        self.shape = replace(shape, weight_bits=8 * ITEM, other_bytes=dense)
        self._sizes = sizes = checkpoint.sizes
        slots = sizes.experts if slots is None else slots
        check_counts(ranks, slots, scratch, sizes.experts)
        each = max(slots // ranks, -(-sizes.experts // (smallest or ranks)))
        pages = sizes.layers * (each + scratch)
        served = fresh(linear(sizes.layers, slots, sizes.experts, ranks))
        order = range(ranks)
        self.devices = Devices(layout(Memfd(), checkpoint, pages), checkpoint, spares)
        try:
            self.devices.add(range(ranks + spares))
            loaded = read_all(self.devices, served, order)
            hold(self.devices, served, order)
            waiting = Standbys(sizes, pace, standbys)
            waiting.fill(ranks)
            self._ranks = Ranks(self.devices, order, served, waiting)
        except BaseException:
            self.devices.close()
            raise
        self._loaded, self._standbys = loaded, waiting
        self._batch, self._tally = Batch(ranks), Tally(sizes, self._clock)
        self._migration = Migration(self._ranks, self.devices, self._batch, sizes, loaded, rate)
        self._jobs: deque[Callable[[], None]] = deque()
        self._steps = self._failures = 0
        self._over = ""  # why nothing is served any more
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="local-engine", daemon=True)
        self._thread.start()
        self._closed = threading.Event()
        watch = partial(look_after, self.devices, self._closed, self._later)
        self._watch = threading.Thread(target=watch, name="devices", daemon=True)
        self._watch.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, prompt: Sequence[int], max_tokens: int, name: str = "", rank: int = -1
    ) -> Request:
        """name, rank: see Request. Raises RequestError for what cannot be served."""
        request = checked(prompt, max_tokens, self._sizes, self._clock, name, rank)
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

    def sample_requests(self, how: Sampling | None) -> None:
        """Which requests to keep token by token from now on; none before it is called."""
        self._tally.sample(how)

    def record(self) -> Recording:
        """What routers chose since the last time."""
        return self._tally.take()

    def pids(self) -> list[int]:
        """Of the ranks' processes."""
        return self._ranks.pids()

    def standbys(self) -> list[int]:
        """Processes that wait to be ranks."""
        return self._standbys.pids()

    @property
    def served(self) -> ExpertMap:
        """The map that serves now, with the pages of its slots."""
        return self._migration.served

    @property
    def order(self) -> list[int]:
        """The ranks' devices."""
        return self._ranks.order

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer, at most."""
        return self._sizes.context

    @property
    def over(self) -> str:
        """Why nothing is served any more; empty while it is."""
        return self._over

    @property
    def status(self) -> EngineStatus:
        batch = self._batch
        return EngineStatus(batch.running, len(batch.waiting), self._steps, self._ranks.restarts)

    @property
    def sample(self) -> Sample:
        """What vLLM's /metrics would say of it."""
        with self._wake:
            return self._batch.sample

    @property
    def metrics(self) -> str:
        """As vLLM tells its own."""
        with self._wake:
            return expose(self._batch.sample, self._batch.by_rank())

    def close(self) -> None:
        """End all processes and free their memory; requests under way fail."""
        with self._wake:
            self._over = self._over or "the engine was closed: start another"
            self._wake.notify()
        self._closed.set()
        self._thread.join()
        self._watch.join()
        self._ranks.close()
        self.devices.close()

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
            self._repair()
        except LostDeviceError as lost:
            self._recover([lost.device])

    def _repair(self) -> None:
        """Make the group whole again, with fewer ranks if devices are gone."""
        try:
            self._ranks.repair()
        except LostDeviceError as lost:
            self._recover([lost.device])

    def _recover(self, gone: list[int]) -> None:
        """Go on without these devices; requests of their ranks are computed again."""
        for ranks in survive(gone, self._ranks, self.devices, self._migration, self._loaded):
            with self._wake:
                self._batch.lose(ranks, len(self._ranks))

    def _later(self, device: int) -> None:
        """It was lost: go on without it between two steps."""
        with self._wake:
            self._jobs.append(partial(self._recover, [device]))
            self._wake.notify()

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
                    self._repair()
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
