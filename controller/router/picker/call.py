"""One request of a gateway's, from its first message to the end of its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from controller.router.bodies.parsed_body import BYTES_PER_TOKEN, ROUTES, ParsedBody, read
from controller.router.picker import messages
from controller.router.picker.answer import Answer
from controller.router.picker.messages import BUFFERED, DUPLEX, Modes, Said
from controller.router.pool.endpoints import Backend, EngineRank
from controller.router.scheduling.request import Decision
from controller.router.shared.request_router import RequestRouter
from controller.router.wire.heads import Headers, RefusedError

RETRY_AFTER: Headers = [(b"retry-after", b"5")]
AWAY = b"503"  # an engine that changes its width
HUNG_UP = 499
# Clients do not make up labels of metrics.
OTHER = "other"  # a route of nobody's
METHODS = frozenset({b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"})
UNKNOWN = b"_OTHER"  # as OpenTelemetry has it
LONGEST = 20  # digits of a length


class Call:
    """What a gateway says of one request, and what it is answered.

    only_rank: the gateway chooses the endpoint itself, and is told the rank there alone
    """

    def __init__(self, router: RequestRouter, only_rank: bool) -> None:
        self._router, self._only_rank = router, only_rank
        self._begun_s = router.clock.monotonic()
        self._method, self._path, self._length = UNKNOWN, b"", 0
        self._subset: frozenset[str] | None = None
        self._modes: Modes | None = None
        self._kept: list[Any] = []  # of the request's body, until it is placed
        self._size = 0
        self._is_placed = False
        self._parsed = ParsedBody()
        self._decision: Decision | None = None
        self._backend: Backend | None = None
        self._answer = Answer(is_shown=True)
        self._refused = ""

    async def take(self, said: Said) -> Sequence[bytes]:
        """What it is answered now. Raises RefusedError."""
        if self._modes is None:
            self._begin(said)
        if (kind := said.WhichOneof("request")) is None:
            return ()
        heard = HEARD[kind]
        return await heard(self, said)

    def _begin(self, said: Said) -> None:
        self._modes, self._subset = messages.modes(said), messages.subset(said)
        self._answer.is_shown = self._modes.answer != messages.NONE
        active, limits = self._router.active, self._router.limits
        active.add(self)
        self._router.metrics.active = len(active)
        if len(active) > limits.requests:
            raise RefusedError(429, "too many requests: try again later", RETRY_AFTER)

    def refused(self, error: RefusedError) -> None:
        self._answer.status = error.status
        self._refused = {429: "overload", 503: "held"}.get(error.status, "refused")

    def end(self) -> None:
        """Nothing more comes of it: it is answered, or the gateway left it."""
        router, answer, fault = self._router, self._answer, self._refused
        self._forget()
        if self._backend is not None and self._decision is not None:
            router.ended(self._decision, self._backend, answer.generated(self._parsed.most))
            self._backend = self._decision = None
            sent = "" if 0 < answer.status < 400 else "engine" if answer.status else "client"
            fault = fault or sent
        if self not in router.active:
            return
        router.active.discard(self)
        router.metrics.active = len(router.active)
        route = self._path.decode() if self._path in ROUTES else OTHER
        seconds = router.clock.monotonic() - self._begun_s
        router.metrics.ended(route, self._method, answer.status or HUNG_UP, seconds, fault)

    async def _request_headers(self, said: Said) -> Sequence[bytes]:
        told = said.request_headers
        if self._is_placed:
            return [messages.untouched("request_headers")]
        head = messages.headers(told)
        method = head.get(":method", b"")
        self._method = method if method in METHODS else UNKNOWN
        self._path = head.get(":path", b"").partition(b"?")[0]
        length = head.get("content-length", b"")
        self._length = int(length) if length.isdigit() and len(length) < LONGEST else 0
        self._check(self._length)
        assert self._modes is not None
        if told.end_of_stream:
            return [self._pass("request_headers")]
        if self._modes.request == DUPLEX:
            return ()  # with the body, which has to be looked into first
        if self._modes.request in BUFFERED:
            return [messages.untouched("request_headers")]
        return [await self._place("request_headers", self._unread(self._length))]

    async def _request_body(self, said: Said) -> Sequence[bytes]:
        told = said.request_body
        assert self._modes is not None
        self._size += len(told.body)
        self._check(self._size)
        if self._modes.request == DUPLEX:
            return await self._piece(told)
        if self._is_placed:
            return [messages.untouched("request_body")]
        return [await self._place("request_body", self._read(told.body))]

    async def _piece(self, told: Any) -> Sequence[bytes]:
        """Kept until all of it is there, or as much as is looked into; then all goes on."""
        if self._is_placed:
            return [messages.streamed("request_body", told.body, told.end_of_stream)]
        self._kept.append(told)
        has_room = self._router.reserve(len(told.body))
        may_more_come = not told.end_of_stream and self._size <= self._router.limits.parsed_bytes
        if has_room and may_more_come:
            return ()
        return await self._go_on(told.end_of_stream)

    async def _go_on(self, is_whole: bool) -> Sequence[bytes]:
        if is_whole:
            parsed = self._read(b"".join(one.body for one in self._kept))
        else:
            parsed = self._unread(max(self._length, self._size))
        first = await self._place("request_headers", parsed)
        kept = [messages.streamed("request_body", one.body, one.end_of_stream)
                for one in self._kept]  # fmt: skip
        self._forget()
        return [first, *kept]

    async def _request_trailers(self, _: Said) -> Sequence[bytes]:
        assert self._modes is not None
        end = messages.untouched("request_trailers")
        if self._is_placed or self._modes.request != DUPLEX:
            return [end]
        return [*await self._go_on(True), end]

    async def _response_headers(self, said: Said) -> Sequence[bytes]:
        told = said.response_headers
        head = messages.headers(told)
        status = head.get(":status", b"")
        self._answer.head(int(status) if status.isdigit() else 0, head.get("content-type", b""))
        # The gateway's own limits are no reason to send nothing to an engine.
        if self._backend is not None and status == AWAY and "x-envoy-overloaded" not in head:
            endpoint = self._backend.endpoint
            self._router.endpoints.shut(endpoint, f"{endpoint.url} answers 503")
        if told.end_of_stream:
            self.end()
        return [messages.untouched("response_headers")]

    async def _response_body(self, said: Said) -> Sequence[bytes]:
        told = said.response_body
        if not self._answer.seen and told.body and self._decision is not None:
            self._router.scheduler.began(self._decision)
        self._answer.add(told.body)
        if told.end_of_stream:
            self.end()
        assert self._modes is not None
        if self._modes.answer == DUPLEX:
            return [messages.streamed("response_body", told.body, told.end_of_stream)]
        return [messages.untouched("response_body")]

    async def _response_trailers(self, _: Said) -> Sequence[bytes]:
        self.end()
        return [messages.untouched("response_trailers")]

    async def _place(self, kind: str, parsed: ParsedBody) -> bytes:
        """To the rank that the scheduler chooses. Raises RefusedError."""
        self._is_placed, self._parsed = True, parsed
        among = self._among()
        if self._only_rank and len({backend.endpoint for backend in among.values()}) != 1:
            return messages.placed(kind, "", b"")  # whose rank it would be, nobody can tell
        if parsed.text and self._router.tokenizing is not None:
            known = asyncio.Event()
            self._router.tokenizing.encode(parsed, known.set)
            await known.wait()
        among = self._among()  # others may be there now
        chosen = self._router.choose(
            parsed.request(), None if self._subset is None else among.keys()
        )
        if chosen is None:
            raise self._none()
        self._decision, self._backend = chosen
        return self._told(kind, self._backend, self._backend.line)

    def _pass(self, kind: str) -> bytes:
        """What has no body costs no engine much: any will do."""
        self._is_placed = True
        if self._only_rank:
            return messages.untouched(kind)
        backend = next(iter(self._among().values()), None)
        if backend is None:
            raise self._none()
        return self._told(kind, backend, b"")

    def _told(self, kind: str, backend: Backend, line: bytes) -> bytes:
        server = backend.endpoint.server
        return messages.placed(kind, "" if self._only_rank else server.reached, line)

    def _among(self) -> Mapping[EngineRank, Backend]:
        """The ranks that may be chosen."""
        backends, subset = self._router.endpoints.backends, self._subset
        if subset is None:
            return backends
        return {place: backend for place, backend in backends.items() if _is_in(backend, subset)}

    def _none(self) -> RefusedError:
        what = "no engine" if self._subset is None else "no engine of the gateway's subset"
        return RefusedError(503, f"{what} takes requests: try again later", RETRY_AFTER)

    def _read(self, body: bytes) -> ParsedBody:
        """Raises RefusedError."""
        limits = self._router.limits
        if self._path not in ROUTES or len(body) > limits.parsed_bytes:
            return self._unread(len(body))
        return read(body, limits.scored_tokens)

    def _unread(self, size: int) -> ParsedBody:
        return ParsedBody(length=size // BYTES_PER_TOKEN + 1)

    def _check(self, size: int) -> None:
        if size > (most := self._router.limits.request_bytes):
            raise RefusedError(413, f"a body of more than {most:,} bytes: send less")

    def _forget(self) -> None:
        self._router.reserve(-sum(len(one.body) for one in self._kept))
        self._kept = []


# Of the class: an object that holds its own methods would wait for the garbage collector.
HEARD: Mapping[str, Callable[[Call, Said], Awaitable[Sequence[bytes]]]] = {
    "request_headers": Call._request_headers,
    "request_body": Call._request_body,
    "request_trailers": Call._request_trailers,
    "response_headers": Call._response_headers,
    "response_body": Call._response_body,
    "response_trailers": Call._response_trailers,
}


def _is_in(backend: Backend, subset: frozenset[str]) -> bool:
    server = backend.endpoint.server
    return server.reached in subset or server.address.authority.decode() in subset
