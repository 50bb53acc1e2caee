"""A controller under load: 512 agents that push, register and watch for plans, all at once.

The controller has a process of its own, without Ray; so has the planner, and the agents, each with
a connection of its own, share a third. A decision is timed by itself afterwards.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.table import Table

from bench.replan import chances, planned, problem
from bench.timing import console
from controller.assemble import Controller, assembled
from controller.config import Config, PoolPolicy
from controller.engines.in_memory import MemoryEngine, MemoryEngines
from controller.engines.planning import answer
from controller.engines.process_planner import SPAWN, ProcessPlanner
from controller.fleet.pools import Group
from controller.fleet.windows import Delta, Window
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import Stage
from controller.policies import policy
from controller.policies.rebalance import rebalance
from controller.server.security import Listening
from placer import model, topology
from placer.channel import Settings, open_aio_channel
from placer.clock import SystemClock
from placer.placement import Placement
from placer.problem import Problem
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub

LAYERS, EXPERTS, TOP_K, SLOTS, RANKS, ENGINES = 58, 256, 8, 288, 32, 16
AGENTS = RANKS * ENGINES
EVERY_S, LASTS_S = 5.0, 60.0
OFFER_S = 20.0  # after the first push
TOKENS = {profile_pb2.PHASE_PREFILL: 16_384, profile_pb2.PHASE_DECODE: 4_096}  # of a push
ROUNDS = 9
POOL = "deepseek-v3"
POLICY = PoolPolicy(topology.preset("h100"), confirmations=1)  # a plan is proposed while it runs


def run() -> None:
    before, after = linear(), planned(problem(_load(0)))
    busy = os.getloadavg()[0]
    with TemporaryDirectory() as folder, process(serve, before, Path(folder)) as controller:
        port = controller.recv()
        with process(agents, port, LASTS_S) as clients:
            clients.recv()  # all are registered
            clients.send("go")
            sizes, offered_s = _watch(controller, after)
            seen: Seen = clients.recv()
            controller.send(("counted", None))
            counted: tuple[int, int] = controller.recv()
    _tell(seen, counted, sizes, offered_s, busy)
    for name, current in (("a running plan", planned(problem(_load(0)))), ("linear", before)):
        took_ms, busy_ms, decided = _decision(current)
        console.print(
            f"A decision from {name}: {took_ms:.0f} ms, {busy_ms:.0f} ms of work on two threads "
            f"(load {os.getloadavg()[0]:.1f}): {decided}"
        )


@dataclass
class Seen:
    """By the agents. Seconds are of the clock that all processes of a host share."""

    pushes: int = 0
    tokens: int = 0
    refused: list[str] = field(default_factory=list)
    acknowledged_s: list[float] = field(default_factory=list)
    registered_s: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)  # when each watcher had the plan


def _watch(controller: Connection, after: Placement) -> tuple[dict[int, float], float]:
    """MB of the controller by seconds of load, and when the offer was made."""
    begun, sizes, offered_s = time.monotonic(), {}, 0.0
    for at in (10, OFFER_S, 30, LASTS_S):
        time.sleep(max(begun + at - time.monotonic(), 0))
        if at == OFFER_S:
            controller.send(("offer", after))
            offered_s = controller.recv()
            continue
        controller.send(("size", None))
        sizes[int(at)] = controller.recv()
    return sizes, offered_s


def _tell(
    seen: Seen, counted: tuple[int, int], sizes: dict[int, float], offered_s: float, busy: float
) -> None:
    table = Table(
        title=f"{AGENTS} agents, {LAYERS} x {EXPERTS} counters of two phases and a registration "
        f"each {EVERY_S:g} s for {LASTS_S:g} s (load of this host before: {busy:.1f})",
        title_justify="left",
    )
    for name in ("", "measured", "limit"):
        table.add_column(name, justify="right")
    pushed_ms, registered_ms = (
        np.percentile(np.array(times) * 1e3, [50, 99, 100])
        for times in (seen.acknowledged_s, seen.registered_s)
    )
    arrived_ms = np.percentile((np.array(seen.arrived) - offered_s) * 1e3, [50, 99, 100])
    lost = seen.tokens - counted[0], seen.tokens * LAYERS * TOP_K - counted[1]
    percentiles = "{:.1f} / {:.1f} / {:.1f} ms".format
    table.add_row("pushes, tokens sent", f"{seen.pushes:,}, {seen.tokens:,}", "")
    table.add_row("tokens, choices lost", "{:,}, {:,}".format(*lost), "0, 0")
    table.add_row("pushes refused", str(len(seen.refused)), "0")
    table.add_row("acknowledged, p50 / p99 / longest", percentiles(*pushed_ms), "p99 100 ms")
    table.add_row("registered, p50 / p99 / longest", percentiles(*registered_ms), "")
    table.add_row("watchers that got the plan", f"{len(seen.arrived)}", f"{AGENTS}")
    table.add_row("plan at the watcher, p50 / p99 / last", percentiles(*arrived_ms), "1,000 ms")
    for at, size in sizes.items():
        table.add_row(f"controller's memory after {at} s", f"{size:.0f} MB", "800 MB")
    console.print(table)


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


# The controller's process, and its planner's.


def serve(pipe: Connection, before: Placement, folder: Path, policy: PoolPolicy = POLICY) -> None:
    asyncio.run(_controller(pipe, before, folder, policy))


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
                profile = group.profile("mixed", time.time()) if group else None
                assert profile is not None
                pipe.send((int(profile.tokens), int(profile.load.sum())))
            case ("end", _):
                return


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process has")


# The agents' process.


def agents(pipe: Connection, port: int, lasts_s: float) -> None:
    asyncio.run(_load_generator(pipe, port, lasts_s))


async def _load_generator(pipe: Connection, port: int, lasts_s: float) -> None:
    seen = Seen()
    turns, counts = int(lasts_s / EVERY_S), [_counts(seed) for seed in range(4)]
    begin: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    ready = asyncio.Semaphore(0)
    every = [
        asyncio.create_task(_agent(at, port, counts[at % 4], turns, seen, ready, begin))
        for at in range(AGENTS)
    ]
    for _ in every:
        await ready.acquire()
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    begin.set_result(time.monotonic())
    await asyncio.gather(*every)
    pipe.send(seen)
    await asyncio.to_thread(pipe.recv)


async def _agent(
    at: int, port: int, counts: list[Any], turns: int, seen: Seen, ready: asyncio.Semaphore,
    begin: asyncio.Future[float],
) -> None:  # fmt: skip
    said = registration(at)
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with open_aio_channel(f"127.0.0.1:{port}", Settings(), own) as channel:
        fleet, profile = FleetServiceStub(channel), ProfileServiceStub(channel)
        await fleet.Register(said)
        watching = asyncio.create_task(_watcher(channel, said, seen))
        stream = profile.Push()
        ready.release()
        begun = await begin + at * EVERY_S / AGENTS
        for turn in range(turns):
            await asyncio.sleep(begun + turn * EVERY_S - time.monotonic())
            sequence = turn + 1
            sent_s = time.monotonic()
            await stream.write(
                profile_pb2.PushRequest(id=said.id, sequence=sequence, counts=counts)
            )
            response = await stream.read()
            answered_s = time.monotonic()
            assert response.sequence == sequence
            seen.acknowledged_s.append(answered_s - sent_s)
            seen.refused += [response.refused] if response.refused else []
            seen.pushes += 1
            seen.tokens += sum(count.tokens for count in counts)
            await asyncio.sleep(EVERY_S / 2)
            sent_s = time.monotonic()
            await fleet.Register(said)
            seen.registered_s.append(time.monotonic() - sent_s)
        await stream.done_writing()
        watching.cancel()


async def _watcher(channel: Any, said: Any, seen: Seen) -> None:
    """Says that it applied what it gets, as an agent would."""
    request = placement_pb2.WatchRequest(pool=said.id.pool, engine=said.id.engine)
    async for response in PlacementServiceStub(channel).Watch(request):
        seen.arrived.append(time.monotonic())
        said.epoch, said.digest = response.epoch, f"sha256:{'0' * 64}"


def registration(at: int) -> Any:
    engine, rank = divmod(at, RANKS)
    return fleet_pb2.RegisterRequest(
        id=profile_pb2.WorkerId(
            pool=POOL, engine=f"engine-{engine}", worker=f"worker-{rank}",
            incarnation=time.time_ns(),
        ),
        worker=fleet_pb2.Worker(
            name=f"worker-{rank}", model=POOL, layers=LAYERS, experts=EXPERTS, top_k=TOP_K,
            slots=SLOTS, ep_rank=rank, ep_size=RANKS, can_apply=True, records=True,
        ),
    )  # fmt: skip


def _counts(seed: int) -> list[Any]:
    return [
        profile_pb2.Counts(
            phase=phase, layers=LAYERS, experts=EXPERTS, top_k=TOP_K, tokens=tokens, sequences=9,
            load=_load(seed, tokens).astype("<u4").tobytes(),
        )
        for phase, tokens in TOKENS.items()
    ]  # fmt: skip


def _load(seed: int, tokens: int = 16_384, kind: int = 0) -> Any:
    """[layers, experts] of routing as in `bench replan`, drawn with this seed."""
    rng, rows = np.random.default_rng(seed), chances(kind)
    return np.array([rng.multinomial(tokens * TOP_K, row) for row in rows], dtype=np.float64)


def linear() -> Placement:
    table = np.tile(np.arange(SLOTS) % EXPERTS, (LAYERS, 1))
    return Placement(table, EXPERTS, RANKS, nodes=POLICY.hardware(RANKS).nodes)


# A decision.


def _decision(current: Placement) -> tuple[float, float, str]:
    """From a pool's windows, of two halves and two phases, to what is done: median ms, warm, by the
    clock and of the processor. A tenth of the traffic is another than ``current`` was made for."""
    pool = Group(POOL, model.preset("deepseek-v3"), RANKS, SLOTS, {"engine": []}, {})
    for phase in ("prefill", "decode"):
        window = pool.windows[phase] = Window(POLICY.window_s, 0.0)
        for at in range(40):
            other = 7 if at % 10 == 0 else 0
            delta = Delta(phase, TOP_K, 16_384, 9, _load(at, kind=other).astype("<u4"))
            window.add(delta, at * POLICY.window_s / 45)
    times, works = [], []
    for _ in range(ROUNDS + 1):
        begun, worked = time.perf_counter(), time.process_time()
        profile = pool.profile("mixed", POLICY.window_s * 0.9)
        assert profile is not None
        task = Problem(
            pool.model, POLICY.hardware(RANKS), profile, SLOTS, POLICY.objective, current
        )
        found = answer(task, POLICY.optimizer)
        decided = rebalance(policy.Seen(found, policy.Past(), POLICY, 0.0))
        times.append((time.perf_counter() - begun) * 1e3)
        works.append((time.process_time() - worked) * 1e3)
    return median(times[1:]), median(works[1:]), f"{decided.outcome}: {decided.reason}"
