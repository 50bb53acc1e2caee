"""vLLM's routes for elastic expert parallelism, of 0.32 and 0.33.

`POST /scale_elastic_ep` is answered when all is over. `POST /is_scaling_elastic_ep` tells how far
it is, by phase and epoch (0.33, external load balancing), or only whether requests are turned away.
503 is a phase: requests are turned away while the ranks commit, and for ever if that fails.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from placer.clock import Clock
from placer.errors import PlacerError

LOOK_S = 5.0  # for the answer to a question
SCALE_S = 3600.0  # for that to a change, which comes at its end
LIMIT = 2**16  # bytes of an answer
SAID = 300  # characters of it that are shown
TURNED_AWAY = 503
CONNECTIONS = {"http": HTTPConnection, "https": HTTPSConnection}


class UnreachableError(PlacerError):
    """An API server that does not answer, or as none of vLLM's does."""


class Phase(StrEnum):
    IDLE = "idle"
    PREPARING = "preparing"
    COMMITTING = "committing"
    FAILED = "failed"
    COMPLETED = "completed"


class Answer(NamedTuple):
    status: int
    text: str

    @property
    def told(self) -> str:
        """What an error says, on one line."""
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            error = json.loads(self.text)
            return _line(str(error.get("detail") or error["error"]["message"]))
        return _line(self.text) or f"answer {self.status}"


class Progress(NamedTuple):
    """How far a change is. epoch: of the last one, empty if it has none; target: data-parallel
    ranks that it is to have, 0 if that is not told"""

    phase: Phase
    epoch: str = ""
    target: int = 0
    error: str = ""


Ask = Callable[[str, str, Mapping[str, Any], float], Awaitable[Answer]]


class VllmApi:
    """One API server. ask: method, URL, body and deadline; raises UnreachableError"""

    def __init__(self, address: str, clock: Clock, ask: Ask) -> None:
        self.address = address.rstrip("/")
        self._clock, self._ask = clock, ask

    async def scale(self, ranks: int) -> Answer:
        """Have so many data-parallel ranks; the same again is no harm. Answered at the end, or at
        once while requests are turned away."""
        body = {"new_data_parallel_size": ranks}
        return await self._ask("POST", f"{self.address}/scale_elastic_ep", body, SCALE_S)

    async def progress(self) -> Progress:
        """0.33 answers 503 also if its store does, while requests are let in: that is no phase."""
        answer = await self._look("POST", "/is_scaling_elastic_ep")
        if answer.status == TURNED_AWAY and not await self.serves():
            return Progress(Phase.COMMITTING)
        try:
            told = json.loads(answer.text)
            phase = told.get("phase") or ("committing" if told["is_scaling_elastic_ep"] else "idle")
            epoch, error = str(told.get("epoch") or ""), _line(str(told.get("error") or ""))
            target = int(told.get("requested_data_parallel_size") or 0)
            return Progress(Phase(phase), epoch, target, error)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UnreachableError(
                f"{self.address}/is_scaling_elastic_ep answers {answer.status}, {answer.told}: is "
                "it vLLM 0.32 or 0.33?"
            ) from error

    async def serves(self) -> bool:
        """Whether requests are let in."""
        return (await self._look("GET", "/version")).status != TURNED_AWAY

    async def _look(self, method: str, path: str) -> Answer:
        try:
            async with self._clock.timeout(LOOK_S):
                return await self._ask(method, f"{self.address}{path}", {}, LOOK_S)
        except TimeoutError as error:
            raise UnreachableError(f"{self.address} does not answer in {LOOK_S:g} s") from error


def fault(address: str) -> str:
    """Why this is no API server's address; empty if it may be one."""
    with suppress(ValueError):
        parts = urlsplit(address)
        bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        if parts.scheme in CONNECTIONS and parts.hostname and bare and parts.port != 0:
            return ""
    return f"PLACER_API is {address[:100]!r}: set it to http://host:port"


async def ask(method: str, url: str, body: Mapping[str, Any], deadline_s: float) -> Answer:
    """Over HTTP, on a thread of its own: it may take long, and keeps no process from ending. No
    redirection is followed."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Answer] = loop.create_future()

    def tell(answer: Answer | UnreachableError) -> None:
        if found.done():
            return
        if isinstance(answer, Answer):
            found.set_result(answer)
        else:
            found.set_exception(answer)

    def work() -> None:
        answer: Answer | UnreachableError
        try:
            answer = _asked(method, url, body, deadline_s)
        except (OSError, ValueError, HTTPException) as error:
            said = _line(str(error)) or type(error).__name__
            answer = UnreachableError(f"{url[:SAID]} does not answer ({said})")
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, answer)

    Thread(target=work, name="vllm-api", daemon=True).start()
    return await found


def _asked(method: str, url: str, body: Mapping[str, Any], deadline_s: float) -> Answer:
    parts = urlsplit(url)
    kind = CONNECTIONS[parts.scheme]
    connection = kind(parts.hostname or "", parts.port, timeout=deadline_s)
    try:
        sent = json.dumps(body) if body else None
        connection.request(method, parts.path, sent, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(LIMIT).decode(errors="replace"))
    finally:
        connection.close()


def _line(text: str) -> str:
    return " ".join(text[:SAID].split())
