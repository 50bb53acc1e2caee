"""The processes of an engine's ranks: started, asked, and started again when they die."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

from controller.local_engine.rank_messages import (
    Aborted,
    Link,
    Message,
    Serve,
    Setup,
    Staged,
    receive,
    send,
)
from controller.local_engine.shared_memory import Layout
from placer.errors import PlacerError

PATIENCE_S = 30.0  # a rank that does not answer for so long is taken for dead
ATTEMPTS = 20  # to start ranks, or to make a step, before the engine gives up
ROOT = Path(__file__).parents[2]


class EngineError(PlacerError):
    """An engine that cannot serve."""


class RankLostError(Exception):
    """Ranks went away before they answered."""

    def __init__(self, ranks: list[int]) -> None:
        super().__init__(f"ranks {ranks} went away")
        self.ranks = ranks


class _Process:
    """One rank. Its memory outlives it. ``links``: its ends of sockets to the others"""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.links: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        # One thread each: ranks share the cores. Signals of the terminal are the engine's to take.
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        module = "controller.local_engine.rank"
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), str(self.setup.rank)],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        with suppress(OSError):  # dead already, as the next question will tell
            send(self.socket, self.setup)

    def say(self, message: Message) -> None:
        send(self.socket, message)
        if isinstance(message, Link) and self.links:
            socket.send_fds(self.socket, [b"\0"], [one.fileno() for one in self.links])

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self, grace_s: float = 0.0) -> None:
        """Hang up, on which it ends by itself; kill it after ``grace_s``."""
        self.socket.close()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Ranks:
    """All of them, on one thread. After ``RankLostError`` comes ``repair``."""

    def __init__(self, folder: Path, layout: Layout, held: Iterable[Serve | Staged]) -> None:
        """``held``: see ``hold``."""
        self.restarts = 0
        self._held: dict[type, Message] = {type(message): message for message in held}
        self._processes: list[_Process] = []
        try:
            for rank in range(layout.ranks):
                self._processes.append(_Process(Setup(rank, folder, layout)))
            self.repair()
        except BaseException:
            self.close()
            raise

    def pids(self) -> list[int]:
        return [one.process.pid for one in self._processes]

    def ask(self, messages: Mapping[int, Message]) -> dict[int, Any]:
        """The answers of ranks. Raises RankLostError, once all that can have answered."""
        lost, answers = set(), {}
        for rank, message in messages.items():
            try:
                self._processes[rank].say(message)
            except OSError:
                lost.add(rank)
        for rank in messages.keys() - lost:
            try:
                answers[rank] = receive(self._processes[rank].socket)
            except (OSError, EOFError):
                lost.add(rank)
        for rank in lost:  # or it is merely silent
            self._processes[rank].end()
        if lost or any(isinstance(answer, Aborted) for answer in answers.values()):
            raise RankLostError(sorted(lost))
        return answers

    def ask_all(self, message: Message) -> list[Any]:
        """The answers of all ranks, in their order."""
        answers = self.ask(dict.fromkeys(range(len(self._processes)), message))
        return [answers[rank] for rank in range(len(self._processes))]

    def hold(self, message: Serve | Staged) -> None:
        """Tell all ranks what holds from now on, also for those that will be started again."""
        self._held[type(message)] = message
        self.ask_all(message)

    def supervise(self) -> None:
        """Raises RankLostError if one died unasked."""
        if lost := [rank for rank, one in enumerate(self._processes) if not one.alive]:
            raise RankLostError(lost)

    def repair(self) -> None:
        """Start the dead again on the same memory, and join them with the others."""
        for _ in range(ATTEMPTS):
            for one in self._processes:
                if not one.alive:
                    one.end()
                    one.start()
                    self.restarts += 1
            try:
                return self._bring_up()
            except RankLostError:
                continue
        raise EngineError(f"ranks died {ATTEMPTS} times while starting: see the engine's stderr")

    def close(self) -> None:
        for one in self._processes:
            one.socket.close()
        for one in self._processes:
            one.end(grace_s=5.0)

    def _bring_up(self) -> None:
        """Link all, and tell them what holds."""
        self._link()
        for message in self._held.values():
            self.ask_all(message)

    def _link(self) -> None:
        """New sockets between all ranks: what was on its way through the old ones is void."""
        try:
            for pair in combinations(self._processes, 2):
                for one, end in zip(pair, socket.socketpair(), strict=True):
                    one.links.append(end)
            self.ask({rank: Link(len(one.links)) for rank, one in enumerate(self._processes)})
        finally:
            for one in self._processes:
                for end in one.links:
                    end.close()
                one.links.clear()
