"""kill -9 at 50 random moments of changes of width: of a rank, a standby, a memory process, the
keeper, or the coordinator, which is the controller's own code on a ledger, in a process of its own.

    SEED=0 KILLS=50 python -m bench elastic_kills

Beside streams whose tokens are held against an undisturbed engine's. Printed: who and when, how
long the longest of the streams then waited for a token, and what was left over.
"""

import asyncio
import os
import random
import signal
import threading
from contextlib import closing, suppress
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

from rich.table import Table

from bench.elastic.engines import an_engine, models, nearest
from bench.timing import console
from controller.changes.operations import Operation, Scale
from controller.changes.runner import Runner
from controller.changes.targets import pack
from controller.config import Config, PoolPolicy
from controller.elastic.hmm import Report
from controller.engines.in_memory import MemoryPlanner
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.local_engine.local_engine import LocalEngine
from controller.migration.commands import Command, Lost, Outcome
from placer import topology
from placer.clock import SystemClock
from placer.placement import Placement

KILLS, SEED = int(os.environ.get("KILLS", "50")), int(os.environ.get("SEED", "0"))
POOL, ENGINE, STREAMS, TOKENS = "tiny", "engine", 4, 120
LIMIT_S = 2.0
SPAWN = get_context("spawn")
VICTIMS = ("a rank", "a standby", "a memory process", "the keeper", "the coordinator")


def run() -> None:
    os.environ["SIZES"] = "example"
    lots, rows = random.Random(SEED), []
    (model,) = models(Path())
    with an_engine(model, 3, standbys=2, spares=1) as engine, TemporaryDirectory() as folder:
        streams = Streams(engine)
        before = _descriptors(engine)
        for number in range(KILLS):
            ranks = lots.choice([one for one in (2, 3, 4) if one != engine.placement.gpus])
            victim, at_s = lots.choice(VICTIMS), lots.uniform(0.0, 0.25)
            rows.append(
                (number, ranks, victim, at_s, *_one(engine, folder, ranks, victim, at_s, streams))
            )
        streams.end()
        sleep(1.0)
        after = _descriptors(engine)
        leaked = _leaks(engine)
    table = Table(title=f"{KILLS} kills, seed {SEED}", title_justify="left")
    for name in (
        "",
        "to ranks",
        "killed",
        "ms after it began",
        "longest wait for a token, ms",
        "done after, s",
    ):
        table.add_column(name, justify="right")
    for number, ranks, victim, at_s, wait_s, took_s in rows:
        table.add_row(
            str(number),
            str(ranks),
            victim,
            f"{at_s * 1e3:.0f}",
            f"{wait_s * 1e3:.0f}",
            f"{took_s:.2f}",
        )
    console.print(table)
    waits = [row[4] for row in rows]
    over = sum(wait > LIMIT_S for wait in waits)
    console.print(
        f"{streams.served} requests: {streams.failed} failed, {streams.different} with other "
        f"tokens; longest wait {max(waits):.2f} s, median {median(waits) * 1e3:.0f} ms, "
        f"{over} over {LIMIT_S:g} s; experts lost: {leaked[0]}; pages that the tables and the map "
        f"do not agree on: {leaked[1]}; descriptors {before} -> {after}"
    )


class Streams:
    """Requests one after another, a thread each; the times of all tokens."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self.served = self.failed = self.different = 0
        self.times: list[list[float]] = [[] for _ in range(STREAMS)]
        prompts = [bytes([65 + at]) * 12 for at in range(STREAMS)]
        self.expected = [engine.submit(one, TOKENS).tokens() for one in prompts]
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(at, prompt))
            for at, prompt in enumerate(prompts)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, at: int, prompt: bytes) -> None:
        while not self._over.is_set():
            request, found = self.engine.submit(prompt, TOKENS), []
            for token in request:
                found.append(token)
                self.times[at].append(perf_counter())
            self.served += 1
            self.failed += bool(request.error)
            self.different += found != self.expected[at]

    def longest_wait(self, since_s: float, until_s: float) -> float:
        waits = [
            b - a
            for times in self.times
            for a, b in pairwise(list(times))
            if b > since_s and a < until_s
        ]
        return max(waits, default=until_s - since_s)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def _one(
    engine: LocalEngine, folder: str, ranks: int, victim: str, at_s: float, streams: Streams
) -> tuple[float, float]:
    """One change of width with a death in it: the longest wait for a token, and its seconds."""
    path, after = Path(folder) / "ledger.db", nearest(engine.placement, ranks)
    begun_s = perf_counter()
    child = _start(engine, path, after)
    sleep(at_s)
    killed_s = perf_counter()
    if victim == "the coordinator":
        child.kill()
        child.join()
        child = _start(engine, path, None)
    else:
        _kill(engine, victim)
    child.join()
    took_s = perf_counter() - begun_s
    assert child.exitcode == 0, child.exitcode
    sleep(0.3)
    return streams.longest_wait(killed_s, perf_counter()), took_s


def _kill(engine: LocalEngine, victim: str) -> None:
    memory = engine.devices.pids()
    pids = {
        "a rank": engine.pids(),
        "a standby": engine.standbys() or engine.pids(),
        "a memory process": [pid for name, pid in memory.items() if name != "the keeper"],
        "the keeper": [memory["the keeper"]],
    }[victim]
    with suppress(ProcessLookupError):
        os.kill(random.Random(perf_counter()).choice(pids), signal.SIGKILL)


def _descriptors(engine: LocalEngine) -> int:
    """Open ones of this process, and of the keeper."""
    pids = (os.getpid(), engine.devices.pids()["the keeper"])
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def _leaks(engine: LocalEngine) -> tuple[int, int]:
    wrong = 0
    for rank, device in enumerate(engine.order):
        held = engine.devices.ask(device, Report()).table
        wrong += len(
            {at for at, one in enumerate(held) if one >= 0} ^ engine.served.pages_in_use(rank)
        )
    return len(engine.placement.lost), wrong


# The coordinator's process.


def _start(engine: LocalEngine, ledger: Path, after: Placement | None) -> Any:
    """It asks the engine through a pipe, and has begun. after: None to go on with what the ledger
    has open"""
    here, there = SPAWN.Pipe()
    child, begun = SPAWN.Process(target=_coordinate, args=(there, ledger, after)), threading.Event()
    child.start()
    there.close()
    threading.Thread(target=_answer, args=(engine, here, begun), daemon=True).start()
    begun.wait()
    return child


def _answer(engine: LocalEngine, pipe: Connection, begun: threading.Event) -> None:
    """begun: is set when the first command comes, or none will"""
    with closing(pipe), suppress(EOFError, OSError):
        while True:
            command = pipe.recv()
            if command is not None:
                begun.set()
            pipe.send(engine.placement if command is None else engine.carry_out(command))
    begun.set()


class Piped:
    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def moves_itself(self, pool: str, engine: str) -> bool:
        return False

    async def stands(self, pool: str, engine: str) -> Placement:
        placement: Placement = await asyncio.to_thread(self._ask, None)
        return placement

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        try:
            outcome: Outcome = await asyncio.to_thread(self._ask, command)
        except (EOFError, OSError) as error:
            return Lost(str(error))
        return outcome

    def _ask(self, command: Command | None) -> Any:
        self.pipe.send(command)
        return self.pipe.recv()


def _coordinate(pipe: Connection, path: Path, after: Placement | None) -> None:
    asyncio.run(_change(pipe, path, after))


async def _change(pipe: Connection, path: Path, after: Placement | None) -> None:
    engines, clock = Piped(pipe), SystemClock()
    with closing(Ledger(path, FORMS)) as records:
        ledger = WatchedLedger(records, clock)
        config = Config(PoolPolicy(topology.preset("h100")))
        runner = Runner(ledger, engines, config, MemoryPlanner(clock))
        record = next(iter(ledger.open("operation")), None)
        if record is not None:
            record = await runner.run(record, is_restart=True)
        elif after is None:
            return  # it was done, or not begun
        if after is not None:
            now = await engines.stands(POOL, ENGINE)
            goal, home = ledger.keep_placement(after), ledger.keep_placement(now)
            id = ledger.next_id("operation", "op")
            change = Scale(after.gpus, now.gpus, goal)
            operation = Operation(
                id, "", POOL, change, 1, clock.now(), 1, ENGINE,
                epoch=int(clock.now() * 1000), width=now.gpus,
            )  # fmt: skip
            told = {"pool": POOL, "final": False, "blob": pack({ENGINE: home})}
            record = ledger.write("operation", id, "go", operation, **told)
            record = await runner.run(record)
        assert record is not None
        assert record.value.phase in ("succeeded", "rolled back"), record.value
