"""A controller in a process of its own, without Ray, and its planner in another."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.crowd import ENGINES, EXPERTS, LAYERS, POOL, RANKS, SLOTS
from bench.timing import console
from controller.assemble import Controller, assembled
from controller.config import Config, PoolPolicy
from controller.engines.in_memory import MemoryEngine, MemoryEngines
from controller.engines.process_planner import SPAWN, ProcessPlanner
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import Stage
from controller.server.security import Listening
from placer import topology
from placer.clock import SystemClock
from placer.placement import Placement

POLICY = PoolPolicy(topology.preset("h100"), confirmations=1)  # a plan is proposed while it runs


def linear() -> Placement:
    table = np.tile(np.arange(SLOTS) % EXPERTS, (LAYERS, 1))
    return Placement(table, EXPERTS, RANKS, nodes=POLICY.hardware(RANKS).nodes)


@contextmanager
def process(work: Any, *args: Any) -> Iterator[Connection]:
    """A process to talk to."""
    here, there = SPAWN.Pipe()
    child = SPAWN.Process(target=work, args=(there, *args))
    child.start()
    there.close()
    try:
        yield here
        here.send(("end", None))
        child.join()
    finally:
        child.kill()


def serve(pipe: Connection, before: Placement, folder: Path, policy: PoolPolicy = POLICY) -> None:
    uvloop.run(_controller(pipe, before, folder, policy))


async def _controller(
    pipe: Connection, before: Placement, folder: Path, policy: PoolPolicy
) -> None:
    """As on Ray, with a planner and engines that need none."""
    engines = {(POOL, f"engine-{at}"): MemoryEngine(before) for at in range(ENGINES)}
    with (
        closing(ProcessPlanner(1)) as planner,
        closing(Ledger(folder / "ledger.db", FORMS)) as records,
    ):
        ledger = WatchedLedger(records, SystemClock())
        listening = Listening("127.0.0.1:0")
        async with assembled(
            Config(policy), listening, ledger, planner, lambda *_: MemoryEngines(engines)
        ) as found:
            ticking = asyncio.create_task(found.loop.run())
            pipe.send(found.port)
            await _obey(pipe, before, found)
            if (view := found.loop.views.get((POOL, RANKS))) is not None:
                console.print(f"{POOL}: {view.decision.outcome}, {view.decision.reason}")
            for what, condition in found.loop.conditions.items():
                console.print(f"condition: {what}: {condition}")
            ticking.cancel()


async def _obey(pipe: Connection, before: Placement, found: Controller) -> None:
    """What the benchmark asks of its controller, until the end."""
    while True:
        match await asyncio.to_thread(pipe.recv):
            case ("offer", after):
                begun_s = time.monotonic()
                epoch = int(time.time() * 1000)
                for at in range(ENGINES):
                    stage = Stage(epoch + at, before, after)
                    await found.by_agent.carry_out(POOL, f"engine-{at}", stage)
                pipe.send(begun_s)
            case ("size", _):
                pipe.send(_resident_mb())
            case ("counted", _):
                group = found.loop.fleet.pool(POOL).group(RANKS)
                profile = group.profile("mixed", time.monotonic()) if group else None
                assert profile is not None
                pipe.send((int(profile.tokens), int(profile.load.sum())))
            case ("end", _):
                return


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process has")
