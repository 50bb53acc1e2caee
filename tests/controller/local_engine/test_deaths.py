"""Ranks, and the engine itself, killed at any moment."""

import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, cycle

import pytest

from controller.local_engine.local_engine import LocalEngine
from controller.migration.commands import Discard, Done, Lost
from placer.placement import Placement
from tests.controller.local_engine.tiny_engine import (
    EXPERTS,
    MODEL,
    PROMPTS,
    ROOT,
    a_placement,
    a_schedule,
    beside,
    commands,
    eventually,
    generate,
    insist,
    kill,
    runs,
)


def test_a_rank_that_is_killed_while_it_serves_is_not_missed() -> None:
    with LocalEngine(MODEL, 2, 20) as engine:
        undisturbed = generate(engine, PROMPTS[:4], 80)
        requests = [engine.submit(prompt, 80) for prompt in PROMPTS[:4]]
        killed = []
        for at, _ in enumerate(requests[0]):
            if at in (0, 20, 21, 60):
                killed.append(engine.pids()[at % 2])
                kill(killed[-1])
        assert [request.tokens() for request in requests] == undisturbed
        assert not any(request.error for request in requests)
        assert engine.status.restarts == 4
        assert not set(killed) & set(engine.pids())


def test_all_ranks_may_die_at_once() -> None:
    with LocalEngine(MODEL, 3, 18) as engine:
        undisturbed = generate(engine, PROMPTS[:3], 60)
        requests = [engine.submit(prompt, 60) for prompt in PROMPTS[:3]]
        next(iter(requests[0]))
        for pid in engine.pids():
            kill(pid)
        assert [request.tokens() for request in requests] == undisturbed
        assert engine.status.restarts == 3


def test_a_rank_that_dies_idle_is_started_again() -> None:
    with LocalEngine(MODEL, 2) as engine:
        kill(engine.pids()[1])
        assert eventually(lambda: engine.status.restarts == 1)
        assert len(generate(engine, PROMPTS[:1], 5)[0]) == 5


def test_killing_ranks_through_a_whole_migration_loses_nothing() -> None:
    """One after another, each once something was done without the last: a rank that never comes up
    ends an engine, which is another claim."""
    with LocalEngine(MODEL, 2, 20) as engine:
        undisturbed = generate(engine, PROMPTS[:4], 200)
        requests = [engine.submit(prompt, 200) for prompt in PROMPTS[:4]]
        ranks, carried_out, steps = cycle((1, 0, 0, 1, 1)), [0], [-1]

        def kill_the_next() -> None:
            done = engine.status.steps + carried_out[0]
            if done > steps[-1]:
                steps.append(done)
                kill(engine.pids()[next(ranks)])

        with beside(kill_the_next, pause_s=0.4):
            for epoch in count(1):
                if epoch > 2 and engine.status.restarts > 1:
                    break
                way = a_schedule(engine, a_placement(seed=epoch))
                for command in commands(engine.placement, way, epoch):
                    insist(engine, command)
                    carried_out[0] += 1
                assert engine.placement.digest == way.after.digest
            assert [request.tokens() for request in requests] == undisturbed


def _replaced(engine: LocalEngine, pid: int) -> bool:
    return pid not in engine.pids()


def test_a_rank_that_dies_in_a_command_is_said_to_be_lost_and_is_back() -> None:
    """It is stopped, so that it surely has not answered when it is killed."""
    said: Counter[str] = Counter()
    with LocalEngine(MODEL, 2, 20) as engine, ThreadPoolExecutor(1) as pool:
        outputs = generate(engine, PROMPTS[:2], 20)
        table = engine.placement.physical_to_logical.copy()
        table[:3, 16:] = [4, 5, 6, 7]  # instead of second copies of 0 to 3
        way = a_schedule(engine, Placement(table, EXPERTS, 2))
        steps = [*commands(engine.placement, way), Discard(1)]
        for at, command in enumerate(steps):
            rank = at % 2
            pid = engine.pids()[rank]
            os.kill(pid, signal.SIGSTOP)
            carried_out = pool.submit(engine.carry_out, command)
            eventually(carried_out.done, within_s=0.1)
            kill(pid)
            outcome = carried_out.result()
            if isinstance(outcome, Lost):
                name = type(command).__name__.lower()
                said[name] += 1
                assert outcome.reason.startswith(f"rank {rank} of the engine went away while ")
                assert outcome.reason.endswith("ing: it was started again")
                assert engine.pids()[rank] != pid
                outcome = engine.carry_out(command)
            assert isinstance(outcome, Done), outcome
            assert eventually(partial(_replaced, engine, pid))
        assert engine.placement.digest == way.after.digest
        assert generate(engine, PROMPTS[:2], 20) == outputs
    # Copies need no rank; on a busy machine, one may be replaced before it is asked.
    assert said.keys() <= {"stage", "agree", "drop", "commit", "verify", "discard"}
    assert len(said) > 2


@pytest.mark.slow
def test_a_rank_that_is_silent_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placer.memory.process.PATIENCE_S", 1.5)
    with LocalEngine(MODEL, 2) as engine:
        undisturbed = generate(engine, PROMPTS[:2], 20)
        os.kill(engine.pids()[1], signal.SIGSTOP)
        assert generate(engine, PROMPTS[:2], 20) == undisturbed
        assert engine.status.restarts >= 1


ENDLESS = f"""
import os
from pathlib import Path
from controller.local_engine.local_engine import LocalEngine
engine = LocalEngine(Path({str(MODEL)!r}), 3, 18)
requests = [engine.submit(b"import os", 1000) for _ in range(12)]
next(iter(requests[0]))
print(*engine.pids(), *engine.devices.pids().values(), flush=True)
for request in requests * 1000:
    request.tokens()
"""


def test_all_processes_end_with_their_engine() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = list(map(int, process.stdout.readline().split()))
        assert len(pids) == 7
        assert all(map(runs, pids))
        process.kill()
    assert eventually(lambda: not any(map(runs, pids)))
