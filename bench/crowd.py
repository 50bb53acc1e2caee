"""512 agents that push, register and watch for plans, in a process of their own; each has a
connection of its own."""

import asyncio
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from bench.replan import chances
from placer.channel import Settings, open_aio_channel
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub

LAYERS, EXPERTS, TOP_K, SLOTS, RANKS, ENGINES = 58, 256, 8, 288, 32, 16
AGENTS = RANKS * ENGINES
EVERY_S = 5.0
TOKENS = {profile_pb2.PHASE_PREFILL: 16_384, profile_pb2.PHASE_DECODE: 4_096}  # of a push
POOL = "deepseek-v3"


@dataclass
class Seen:
    """By the agents. Seconds are of the clock that all processes of a host share."""

    pushes: int = 0
    tokens: int = 0
    refused: list[str] = field(default_factory=list)
    acknowledged_s: list[float] = field(default_factory=list)
    registered_s: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)  # when each watcher had the plan


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
            load=load(seed, tokens).astype("<u4").tobytes(),
        )
        for phase, tokens in TOKENS.items()
    ]  # fmt: skip


def load(seed: int, tokens: int = 16_384, kind: int = 0) -> Any:
    """[layers, experts] of routing as in `bench replan`, drawn with this seed."""
    rng, rows = np.random.default_rng(seed), chances(kind)
    return np.array([rng.multinomial(tokens * TOP_K, row) for row in rows], dtype=np.float64)
