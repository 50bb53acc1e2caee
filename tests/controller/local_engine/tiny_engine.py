"""Engines with the example model, and what happens to them."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from controller.local_engine.local_engine import LocalEngine
from controller.migration.commands import (
    Agree,
    Command,
    Commit,
    Copy,
    Done,
    Drop,
    Lost,
    Outcome,
    Stage,
    Verify,
)
from placer import topology
from placer.placement import Placement
from placer.schedule import Budget, MigrationSchedule, schedule

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "examples" / "tiny_moe" / "model"
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
PROMPTS = [one["prompt"].encode() for one in GOLDEN]
LAYERS, EXPERTS, TOP_K = 6, 16, 2


def generate(engine: LocalEngine, prompts: Sequence[bytes], max_tokens: int) -> list[list[int]]:
    """All prompts at once."""
    requests = [engine.submit(prompt, max_tokens) for prompt in prompts]
    return [request.tokens() for request in requests]


def a_placement(seed: int, ranks: int = 2, slots: int = 20) -> Placement:
    """Experts at random; no rank has one twice."""
    rng = np.random.default_rng(seed)
    twice, rows = slots - EXPERTS, []
    for _ in range(LAYERS):
        shuffled = rng.permutation(EXPERTS)
        by_rank = np.array_split(shuffled[twice:], ranks)
        on_rank: list[list[int]] = [part.tolist() for part in by_rank]
        for expert in shuffled[:twice].tolist() * 2:
            fewest = min((rank for rank in on_rank if expert not in rank), key=len)
            fewest.append(expert)
        rows.append(np.concatenate([rng.permutation(rank) for rank in on_rank]))
    return Placement(np.array(rows), EXPERTS, ranks)


def a_schedule(
    engine: LocalEngine, after: Placement, scratch: int = 2, lanes: int = 8
) -> MigrationSchedule:
    """lanes: copies in flight to a rank"""
    expert_bytes = engine.shape.expert_bytes
    hardware = topology.preset("h100").resized(after.gpus)
    budget = Budget(8 * expert_bytes, scratch_slots=scratch)
    return schedule(engine.placement, after, expert_bytes, hardware, budget)


def commands(before: Placement, way: MigrationSchedule, epoch: int = 1) -> Iterator[Command]:
    """A whole migration."""
    yield Stage(epoch, before, way.after)
    yield Agree(epoch)
    for round in way.rounds:
        yield Drop(epoch, round)
        yield Copy(epoch, round)
        yield Commit(epoch, round)
    yield Verify(epoch, way.after.digest)


def insist(engine: LocalEngine, command: Command) -> Done:
    """As a controller does: what was lost is repeated."""
    outcome: Outcome = Lost("")
    for _ in range(20):
        if not isinstance(outcome, Lost):
            break
        outcome = engine.carry_out(command)
    assert isinstance(outcome, Done), f"{type(command).__name__}: {outcome}"
    return outcome


def migrate(engine: LocalEngine, way: MigrationSchedule, epoch: int = 1) -> None:
    for command in commands(engine.placement, way, epoch):
        insist(engine, command)


@contextmanager
def beside(work: Callable[[], None], pause_s: float) -> Iterator[None]:
    """Does it again and again meanwhile."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(pause_s):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether there is such a process; one that nobody waits for is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    end_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


def everybody(engine: LocalEngine) -> list[int]:
    """The processes of an engine: ranks, memory processes and their keeper."""
    return [*engine.pids(), *engine.devices.pids().values()]


def arenas_of(pid: int) -> int:
    """How many arenas a process holds descriptors of."""
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the folder itself
            found += "placer-arena" in os.readlink(link)
    return found
