"""A controller under load beside one client that means no good, of each kind in turn.

The same 512 agents push and register as in `bench controller`; the ledger holds 100,000 records,
and 1,500 pools are registered. The client sends the next as soon as the last is answered. Nothing
is planned meanwhile: a solve has both cores of a small host to itself.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import numpy as np
from rich.table import Table

from bench.crowd import AGENTS, EXPERTS, LAYERS, POOL, TOP_K, Seen, agents, registration
from bench.served import POLICY as PLANNED
from bench.served import linear, process, serve
from bench.timing import console
from controller.ledger.ledger import Ledger, Record
from placer.channel import Settings, open_aio_channel
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub, LedgerServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub

POLICY = replace(PLANNED, least_tokens=2**60)
POOLS, RECORDS = 1_500, 100_000
LASTS_S, LOOK_S = 30.0, 0.2
MB = 2**20

Call = Callable[[], Awaitable[Any]]


def run() -> None:
    table = Table(
        title=f"{AGENTS} agents beside one hostile client, {LASTS_S:g} s each, {RECORDS:,} records,"
        f" {POOLS:,} pools (p50 / p99 / longest; p99 of pushes at most 100 ms)",
        title_justify="left",
    )
    for name in ("client", "its calls", "pushes acknowledged", "status meanwhile"):
        table.add_column(name, justify="right")
    with TemporaryDirectory() as folder:
        _fill(Path(folder) / "ledger.db")
        with process(serve, linear(), Path(folder), POLICY) as controller:
            port = controller.recv()
            asyncio.run(_register_pools(port))
            for kind in KINDS:
                table.add_row(kind, *_beside(kind, port))
    console.print(table)


def _beside(kind: str, port: int) -> tuple[str, str, str]:
    with process(agents, port, LASTS_S) as clients, process(_client, kind, port) as hostile:
        clients.recv()
        hostile.recv()
        clients.send("go")
        hostile.send("go")
        looks_s = asyncio.run(_look(port))
        hostile.send("enough")
        calls, first = hostile.recv()
        seen: Seen = clients.recv()
    told = _percentiles(seen.acknowledged_s), _percentiles(looks_s)
    return f"{calls:,}: {first}", *told


def _percentiles(seconds: list[float]) -> str:
    found = np.percentile(np.array(seconds) * 1e3, [50, 99, 100])
    return "{:.1f} / {:.1f} / {:.1f} ms".format(*found)


def _fill(path: Path) -> None:
    """Acknowledgements of 512 workers, as many versions of each as make RECORDS."""
    ledger, now_s = Ledger(path), time.time()
    for version in range(1, -(-RECORDS // AGENTS) + 1):
        body = {"epoch": version, "digest": "", "refused_epoch": 0, "refused": ""}
        ledger.put_all(
            Record(
                "acknowledgement", f"{POOL}/engine-{at}/worker", version, now_s, "", body, POOL
            )
            for at in range(AGENTS)
        )  # fmt: skip
    ledger.close()


async def _register_pools(port: int) -> None:
    async with open_aio_channel(f"127.0.0.1:{port}", Settings()) as channel:
        for at in range(POOLS):
            await FleetServiceStub(channel).Register(_of_pool(at))


def _of_pool(at: int) -> Any:
    said = registration(0)
    said.id.pool, said.id.incarnation = f"pool-{at}", 1
    return said


async def _look(port: int) -> list[float]:
    """Seconds that a status of the agents' pool takes, asked for again and again."""
    found, until_s = [], time.monotonic() + LASTS_S
    async with open_aio_channel(f"127.0.0.1:{port}", Settings()) as channel:
        while time.monotonic() < until_s:
            begun_s = time.monotonic()
            await FleetServiceStub(channel).Status(fleet_pb2.StatusRequest(pool=POOL))
            found.append(time.monotonic() - begun_s)
            await asyncio.sleep(LOOK_S)
    return found


# The hostile client's process.


def _client(pipe: Connection, kind: str, port: int) -> None:
    asyncio.run(_attack(pipe, kind, port))


async def _attack(pipe: Connection, kind: str, port: int) -> None:
    calls, first = 0, ""
    options = [
        ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    ]  # fmt: skip
    async with open_aio_channel(f"127.0.0.1:{port}", Settings(), options) as channel:
        call = KINDS[kind](channel)
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        enough = asyncio.create_task(asyncio.to_thread(pipe.recv))
        while not enough.done():
            told = "answered"
            try:
                await call()
            except grpc.aio.AioRpcError as error:
                told = f"{error.code().name}"
            calls, first = calls + 1, first or told
            await asyncio.sleep(0)
        await enough
    pipe.send((calls, first))
    with suppress(EOFError):
        await asyncio.to_thread(pipe.recv)


def _raw(channel: Any, method: str, data: bytes) -> Call:
    """Bytes as they are."""

    async def call() -> None:
        await channel.unary_unary(f"/placer.v1.{method}")(data, timeout=60)

    return call


def _pushed(channel: Any, data: bytes) -> Call:
    async def call() -> None:
        stream = channel.stream_stream("/placer.v1.ProfileService/Push")(timeout=60)
        await stream.write(data)
        await stream.done_writing()
        async for _ in stream:
            pass

    return call


def _phases(channel: Any) -> Call:
    push = profile_pb2.PushRequest(id=registration(1).id, sequence=2**30)
    return _pushed(channel, push.SerializeToString() + b"\x22\x00" * 1_000_000)


def _parts_of_a_phase(channel: Any) -> Call:
    push = profile_pb2.PushRequest(id=registration(1).id, sequence=2**30)
    part = b"\x28\x01" * (16 * MB)  # tokens, again and again
    return _pushed(channel, push.SerializeToString() + b"\x22\x80\x80\x80\x10" + part)


def _reasons(channel: Any) -> Call:
    request = placement_pb2.ApproveRequest(plan_id="plan-1", reason="x" * (100 * MB))
    return _raw(channel, "PlacementService/Approve", request.SerializeToString())


def _keys(channel: Any) -> Call:
    request = fleet_pb2.ScaleToRequest(pool=POOL, ranks=64, idempotency_key="x" * 200_000)
    return _raw(channel, "FleetService/ScaleTo", request.SerializeToString())


def _registrations(channel: Any) -> Call:
    said = registration(1)
    said.condition = said.refused = said.actor = said.digest = "ä" * (10 * MB)
    return _raw(channel, "FleetService/Register", said.SerializeToString())


def _unknown_pools(channel: Any) -> Call:
    request = fleet_pb2.StatusRequest(pool="nobody's")
    return lambda: FleetServiceStub(channel).Status(request)


def _all_pools(channel: Any) -> Call:
    return lambda: FleetServiceStub(channel).Status(fleet_pb2.StatusRequest())


def _history(channel: Any) -> Call:
    request = fleet_pb2.HistoryRequest(limit=1000)
    return lambda: LedgerServiceStub(channel).History(request)


def _shapes(channel: Any) -> Call:
    said = registration(1)
    said.shape = json.dumps({"layers": LAYERS, "hidden": float("nan"), "moe_layers": [0] * 20_000})
    return lambda: FleetServiceStub(channel).Register(said)


def _pairs(channel: Any) -> Call:
    """Counts whose pairs contradict their load, of a worker that is there."""
    load = np.full((LAYERS, EXPERTS), TOP_K, "<u4")
    pairs = np.full((LAYERS, EXPERTS, EXPERTS), 2**32 - 1, "<u4")
    counts = [
        profile_pb2.Counts(
            phase=phase, layers=LAYERS, experts=EXPERTS, top_k=TOP_K, tokens=EXPERTS, sequences=1,
            load=load.tobytes(), transitions=pairs[1:].tobytes(), coactivation=pairs.tobytes(),
        )
        for phase in (profile_pb2.PHASE_PREFILL, profile_pb2.PHASE_DECODE)
    ]  # fmt: skip
    push = profile_pb2.PushRequest(id=_of_pool(0).id, sequence=2**30, counts=counts)
    return _pushed(channel, push.SerializeToString())


def _plans(channel: Any) -> Call:
    file = b'{"format": "placer.plan", "version": 1, "x": [' + b"0," * (7 * MB) + b"0]}"
    request = placement_pb2.ProposeRequest(pool=POOL, file=file)
    return lambda: PlacementServiceStub(channel).Propose(request)


def _nothing(channel: Any) -> Call:
    return lambda: asyncio.sleep(1)


KINDS: dict[str, Callable[[Any], Call]] = {
    "nobody": _nothing,
    "a push of 1,000,000 phases": _phases,
    "a phase of 16,777,216 fields": _parts_of_a_phase,
    "a reason of 100 MB": _reasons,
    "a key of 200,000 characters": _keys,
    "texts of 80 MB in a registration": _registrations,
    "a pool that is none": _unknown_pools,
    "the status of all pools": _all_pools,
    "1,000 records of history": _history,
    "a shape with NaN": _shapes,
    "pairs that cannot be, 63 MB": _pairs,
    "a plan file of 14 MB": _plans,
}
