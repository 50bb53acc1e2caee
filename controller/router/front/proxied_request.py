"""A request on its way to an engine: to a rank that takes it, or held until there is one."""

from abc import abstractmethod
from dataclasses import replace
from math import inf

from controller.router.bodies.parsed_body import ParsedBody
from controller.router.pool.endpoints import Backend
from controller.router.scheduling.request import Decision, Request
from controller.router.shared.request_router import RequestRouter
from controller.router.wire.application import HttpRequest
from controller.router.wire.heads import ID, Headers
from controller.router.wire.upstream import LostError, Taker, Upstream
from placer.marks import Mark, marked

RETRY_AFTER: Headers = [(b"retry-after", b"5")]


class ProxiedRequest(Taker):
    """One request, which is sent again where that is safe. due_s: when it has waited too long;
    place_name, tries: where it is, and how many ranks it was sent to"""

    __slots__ = (
        "_backend", "_body", "_decision", "_events", "_head", "_held_until_s", "_http", "_losses",
        "_mark", "_parsed", "_path", "_request", "_router", "_upstream", "due_s", "is_over",
        "place_name", "route", "tries",
    )  # fmt: skip

    def __init__(
        self, router: RequestRouter, http: HttpRequest, route: str, parsed: ParsedBody
    ) -> None:
        self._router, self._http, self._parsed = router, http, parsed
        self.route = route
        self._path, self._body = http.target, http.body
        self._head = b""
        self._request: Request | None = None
        self._mark = router.mark()
        self._decision: Decision | None = None
        self._backend: Backend | None = None
        self._upstream: Upstream | None = None
        self._events = self._losses = self.tries = 0
        self._held_until_s, self.due_s = 0.0, inf
        self.is_over, self.place_name = False, ""

    @abstractmethod
    def _fail(self, status: int, message: str, headers: Headers, fault: str) -> None:
        """It cannot be answered."""

    def begin(self) -> None:
        router, parsed = self._router, self._parsed
        router.active.add(self)
        headers = self._http.headers
        self._head = self._marked(headers) if self._mark else router.head(headers)
        if parsed.text and router.tokenizing is not None:
            router.tokenizing.encode(parsed, self.place)
        else:
            self.place()

    def place(self) -> None:
        """To the rank that the scheduler chooses; where there is none it waits for one."""
        if self.is_over:
            return
        router = self._router
        if self._request is None:
            self._request = self._parsed.request()
            if self._mark is Mark.LOAD:
                self._request = replace(self._request, tokens=None)
        chosen = router.choose(self._request)
        if chosen is None:
            self._hold()
            return
        self._decision, self._backend = decision, backend = chosen
        self.tries += 1
        self.place_name = f"{decision.engine}/{decision.rank}"
        self.due_s = router.tick_s + router.limits.first_s
        if (connection := backend.endpoint.server.take()) is not None:
            self._send(connection)
        else:
            router.spawn(self._connect(backend))

    def _marked(self, headers: Headers) -> bytes:
        """With an id that tells agents how its rank was chosen."""
        router = self._router
        own = next((value for name, value in headers if name == ID), b"").decode("latin-1")
        told = marked(own or router.clock.new_id(), self._mark).encode("latin-1")
        return b"%b%b: %b\r\n" % (router.head([one for one in headers if one[0] != ID]), ID, told)

    async def _connect(self, backend: Backend) -> None:
        try:
            connection = await backend.endpoint.server.connect()
        except LostError as error:
            if self._backend is backend:
                self._away(str(error))
            return
        if self._backend is backend:
            self._send(connection)
        else:  # it was given up meanwhile
            backend.endpoint.server.keep(connection)

    def _send(self, connection: Upstream) -> None:
        backend = self._backend
        assert backend is not None
        self._upstream, self._events = connection, 0
        connection.send(self, b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
            self._http.method, self._path, backend.endpoint.server.address.authority, self._head,
            backend.line, len(self._body), self._body,
        ))  # fmt: skip

    def _hold(self) -> None:
        """Until a rank takes requests."""
        router = self._router
        if not self._held_until_s:
            self._held_until_s = router.tick_s + router.limits.hold_s
            router.metrics.held += 1
        if router.tick_s >= self._held_until_s:
            self._fail(503, "no engine takes requests: try again later", RETRY_AFTER, "held")
        elif len(router.held) >= router.limits.held:
            self._fail(429, "too many requests wait: try again later", RETRY_AFTER, "overload")
        else:
            self.due_s = self._held_until_s
            router.held.append(self)

    def _away(self, why: str) -> None:
        """The engine takes no requests, so it did not begin this one."""
        backend = self._leave()
        self._router.endpoints.shut(backend.endpoint, why)
        self._again()

    def _again(self) -> None:
        self._router.metrics.retried(self.route)
        self.place()

    def _leave(self, generated: int | None = None) -> Backend:
        """The rank that it was sent to. generated: tokens, if that is not the events that came"""
        backend, decision, upstream = self._backend, self._decision, self._upstream
        assert backend is not None
        assert decision is not None
        self._backend = self._decision = self._upstream = None
        if upstream is not None and upstream.taker is self:
            upstream.abandon()
        self._router.ended(decision, backend, self._events if generated is None else generated)
        return backend

    def _lost(self, why: str) -> None:
        """An engine died with it, or answers nonsense: another one may have it, but not all."""
        self._losses += 1
        if self._losses < self._router.limits.losses:
            self._again()
            return
        self._router.metrics.exhausted(self.route)
        self._fail(502, f"{why}: this request was lost {self._losses} times", [], "lost")
