"""Planners in processes of their own."""

import asyncio
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from controller.engines.planning import answer, resized
from controller.ports import Relocation, Unseen
from placer.errors import PlacerError
from placer.placement import Placement
from placer.plan import Hold, Infeasible, Plan
from placer.problem import Problem
from placer.resize.price import Price
from placer.schedule import MigrationSchedule, schedule

SPAWN = multiprocessing.get_context("spawn")  # a fork would have the controller's locks and files
DIES_S = 1.0  # between the end of its pipe and its own


class PlannerError(PlacerError):
    """The process that planned is no more."""


class ProcessPlanner:
    """As many pools are planned side by side as there are ``workers``: by default one fewer than
    processors, which is the controller's. One that is not waited for any more is ended. What is to
    be carried out is scheduled beside them."""

    def __init__(self, workers: int | None = None) -> None:
        count = workers or max(1, (os.cpu_count() or 1) - 1)
        self._room = asyncio.Semaphore(count)
        self._beside = ThreadPoolExecutor(count + 1, "planner")
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    async def answer(
        self, problem: Problem, optimizer: str, unseen: Unseen | None = None
    ) -> Plan | Hold | Infeasible:
        """Raises PlannerError if the process dies."""
        async with self._room:
            found: Plan | Hold | Infeasible = await self._ask(answer, problem, optimizer, unseen)
        return found

    async def resized(
        self, problem: Problem, current: Placement, optimizer: str
    ) -> Price | Infeasible:
        """Raises PlannerError if the process dies."""
        async with self._room:
            found: Price | Infeasible = await self._ask(resized, problem, current, optimizer)
        return found

    async def scheduled(self, relocation: Relocation) -> MigrationSchedule:
        """Raises PlannerError if the process dies."""
        found: MigrationSchedule = await self._ask(schedule, *relocation)
        return found

    async def _ask(self, what: Callable[..., Any], *of: Any) -> Any:
        running = asyncio.get_running_loop()
        worker = self._idle.pop() if self._idle else _Worker()
        self._all.add(worker)
        try:
            found = await running.run_in_executor(self._beside, worker.ask, what, *of)
        except (EOFError, OSError) as error:
            code = self._end(worker, DIES_S)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise PlannerError(
                f"the process that planned died ({how}): is there enough memory?"
            ) from error
        except BaseException:
            self._end(worker)
            raise
        self._idle.append(worker)
        if isinstance(found, str):
            raise RuntimeError(f"a planner failed:\n{found}")
        if isinstance(found, PlacerError):
            raise found
        return found

    def close(self) -> None:
        """End them all, whatever they are at."""
        for worker in list(self._all):
            self._end(worker)
        self._idle.clear()
        self._beside.shutdown()

    def _end(self, worker: "_Worker", patience_s: float = 0.0) -> int:
        self._all.discard(worker)
        return worker.end(patience_s)


class _Worker:
    """A process that answers one question after another, until its pipe ends."""

    def __init__(self) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: Callable[..., Any], *of: Any) -> Any:
        """What a function of this package answers, a PlacerError, or the trace of another one.
        Raises EOFError or OSError if the process dies."""
        self._pipe.send((what, of))
        return self._pipe.recv()

    def end(self, patience_s: float = 0.0) -> int:
        """Its exit code, which is its own if it ends by itself within ``patience_s``."""
        self._process.join(patience_s)
        self._process.kill()
        self._process.join()
        return self._process.exitcode or 0


def _work(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's, which ends this one
    while True:
        try:
            what, of = pipe.recv()
        except (EOFError, OSError):
            return
        found: Any
        try:
            found = what(*of)
        except PlacerError as error:
            found = error
        except Exception:
            found = traceback.format_exc()
        pipe.send(found)
