"""A front on a real socket before tiny engines, and clients of it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from http.client import HTTPConnection
from itertools import count
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from controller.router.front.front import Front
from controller.router.pool.discovery import Discovery
from controller.router.pool.endpoints import Listed
from controller.router.scheduling.decide import NoRankError
from controller.router.scheduling.pool import Engine as KnownEngine
from controller.router.scheduling.request import Decision, Request, Why
from controller.router.shared.access_log import AccessLog
from controller.router.shared.request_router import RequestRouter
from controller.router.shared.settings import Limits
from controller.server.security import Listening
from placer.clock import SystemClock
from tests.controller.router.front.tiny_engine import Engine

LISTENING = Listening("127.0.0.1:0")
PROMPT = [5, 6, 7]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class LeastLoaded:
    """Of the open ranks the one with the fewest requests, the first of several."""

    def __init__(self) -> None:
        self.engines: Sequence[KnownEngine] = []
        self.load: Counter[tuple[str, int]] = Counter()
        self.others: Mapping[tuple[str, int], float] = {}
        self.tables: Any = None
        self.requests: list[Request] = []
        self.ended_with: list[int | None] = []
        self._live: dict[int, tuple[str, int]] = {}
        self._numbers = count(1)

    def see(self, engines: Sequence[KnownEngine], tables: Any = None, costs: Any = None) -> None:
        self.engines, self.tables = engines, tables or self.tables

    def hear(self, others: Mapping[tuple[str, int], float]) -> None:
        self.others = others

    def choose(
        self, request: Request, among: Collection[tuple[str, int]] | None = None
    ) -> Decision:
        self.requests.append(request)
        places = [(one.name, rank) for one in self.engines for rank in range(one.ranks)
                  if rank not in one.draining]  # fmt: skip
        places = [place for place in places if among is None or place in among]
        if not places:
            raise NoRankError("none")
        place = min(places, key=lambda one: self.load[one] + self.others.get(one, 0))
        self.load[place] += 1
        number = next(self._numbers)
        self._live[number] = place
        return Decision(*place, Why("least", nan, 0.0, 0.0, 0, 0.0, 0.0, 0.0), number)

    def began(self, decision: Decision) -> None:
        assert decision.number in self._live

    def ended(self, decision: Decision, generated: int | None = None) -> None:
        self.load[self._live.pop(decision.number)] -= 1
        self.ended_with.append(generated)

    @property
    def is_idle(self) -> bool:
        return not self._live


class Running(NamedTuple):
    port: int
    front: Front
    scheduler: LeastLoaded


def listed(*them: Engine | Sequence[Engine]) -> dict[str, Listed]:
    """Each an engine; several together are the endpoints of one."""
    found: dict[str, Listed] = {}
    for number, one in enumerate(them, start=1):
        endpoints = [one] if isinstance(one, Engine) else list(one)
        for rank, endpoint in enumerate(endpoints):
            ranks = (rank,) if len(endpoints) > 1 else ()
            found[endpoint.url] = Listed(f"engine-{number}", ranks)
    return found


@asynccontextmanager
async def fronted(
    *them: Engine | Sequence[Engine],
    limits: Limits | None = None,
    listening: Listening = LISTENING,
    log: str = "",
    key: str = "",
    waits: bool = True,
    discovery: Discovery | None = None,
) -> AsyncIterator[Running]:
    """waits: until all engines take requests"""
    scheduler = LeastLoaded()
    header = [(b"authorization", key.encode())] if key else []
    router = RequestRouter(scheduler, limits or Limits(), SystemClock(), AccessLog(log), header,
                listening.tokens is not None)  # fmt: skip
    front = Front(router, listening, listed(*them), discovery)
    stop = asyncio.Event()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(front.run(stop, port.set_result))
    task.add_done_callback(lambda done: port.done() or port.cancel())
    try:
        await port
    except asyncio.CancelledError:
        await task  # it says why
    try:
        if waits:
            await until(lambda: all(endpoint.is_open for endpoint in router.endpoints.all.values()))
        yield Running(port.result(), front, scheduler)
        await until(lambda: not router.active)
        await until(lambda: scheduler.is_idle)
    finally:
        stop.set()
        for one in list(front.service.connections):
            one.transport.abort()
        await task


async def until(is_so: Callable[[], Any], seconds: float = 10.0) -> None:
    for _ in range(int(seconds / 0.01)):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be so")


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test on the loop that fronts run on."""

    @wraps(test)
    def sync(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return sync


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The message of an error in OpenAI's form."""
        error = self.data["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == self.status
        assert self.headers["content-type"] == "application/json"
        return str(error["message"])

    @property
    def events(self) -> list[Any]:
        return events(self.body)

    @property
    def text(self) -> str:
        return text_in(self.events)


def events(body: bytes) -> list[Any]:
    """What each says; the last is [DONE]."""
    found = [line[6:] for line in body.split(b"\n\n") if line]
    return [one.decode() if one == b"[DONE]" else json.loads(one) for one in found]


def text_in(told: Sequence[Any]) -> str:
    choices = [choice for one in told if isinstance(one, dict) for choice in one["choices"]]
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices
    )


def asked(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Answer:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers or {}))
        reply = connection.getresponse()
        told = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, told, reply.read())
    finally:
        connection.close()


async def ask(
    port: int, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """As a client that has never heard of the front."""
    method = "GET" if body is None else "POST"
    return await asyncio.to_thread(asked, port, method, path, body, headers)


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, **more}


def greedy(**more: Any) -> dict[str, Any]:
    return completion(**{"stream": True, "temperature": 0, **more})


async def raw(port: int, data: bytes, seconds: float = 10.0) -> bytes:
    """What comes back until the front hangs up; or as much as came, if it does not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        writer.write(data)
        async with asyncio.timeout(seconds):
            while got := await reader.read(65536):
                found += got
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return found


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path
