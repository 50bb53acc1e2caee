"""What a front answers: its routes, and who may ask. Clients' connections belong to it."""

from collections.abc import Callable
from typing import Any

from controller.router.bodies.parsed_body import ROUTES, ParsedBody, read
from controller.router.front.exchange import Exchange
from controller.router.shared.request_router import RequestRouter
from controller.router.wire.application import HttpRequest
from controller.router.wire.connection import AGAIN, Connection
from controller.router.wire.heads import JSON, Headers, RefusedError
from controller.server.callers import Role
from controller.server.strangers import Strangers
from controller.server.tokens import Tokens

GET, POST = b"GET", b"POST"
TO_ENGINES = {**dict.fromkeys(ROUTES, POST), b"/v1/models": GET}
OTHER = "other"  # a route of nobody's: clients do not make up labels of metrics
TEXT: Headers = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
UNKNOWN: Headers = [(b"www-authenticate", b"Bearer")]


class Service:
    """tokens: who may ask, everybody if it is None; draining: no more requests are taken"""

    def __init__(self, router: RequestRouter, tokens: Tokens | None) -> None:
        self.router, self.limits, self._tokens = router, router.limits, tokens
        self.connections: set[Connection] = set()
        self.draining = False
        self._strangers = Strangers(router.clock)
        self._own: dict[bytes, Callable[[], tuple[int, Headers, bytes]]] = {
            b"/health": self._health,
            b"/metrics": self._metrics,
        }

    @property
    def tick_s(self) -> float:
        return self.router.tick_s

    def entered(self, connection: Any) -> bool:
        self.connections.add(connection)
        return len(self.connections) <= self.limits.connections

    def left(self, connection: Any) -> None:
        self.connections.discard(connection)

    def reserve(self, size: int) -> bool:
        return self.router.reserve(size)

    def handle(self, connection: Any, http: HttpRequest) -> None:
        path = _origin(http)
        try:
            method = TO_ENGINES.get(path)
            if method is None:
                self._answer(connection, http, path)
                return
            _check(http.method, method)
            if self._tokens is not None and not self._knows(http):
                connection.running = waiting = _Denied()
                self.router.spawn(self._deny(connection, http, path.decode(), waiting))
                return
            self._ask(connection, http, path.decode())
        except RefusedError as error:
            route = path.decode() if path in TO_ENGINES or path in self._own else OTHER
            self._refuse(connection, http, route, error)

    def _ask(self, connection: Connection, http: HttpRequest, route: str) -> None:
        """An engine."""
        if self.draining:
            raise RefusedError(503, "this front is being shut down", AGAIN)
        if len(self.router.active) >= self.limits.requests:
            raise RefusedError(429, "too many requests: try again later", AGAIN)
        parsed = ParsedBody()
        if http.method == POST:
            if len(http.body) <= self.limits.parsed_bytes:
                parsed = read(http.body, self.limits.scored_tokens)
            else:
                parsed.length = len(http.body) // 4
        exchange = Exchange(self.router, connection, http, route, parsed)
        connection.running = exchange
        exchange.begin()

    def _answer(self, connection: Connection, http: HttpRequest, path: bytes) -> None:
        """What the front itself knows."""
        own = self._own.get(path)
        if own is None:
            raise RefusedError(404, "no such route: see docs/front.md for those that there are")
        _check(http.method, GET)
        status, headers, body = own()
        self.router.metrics.ended(path.decode(), http.method, status, 0.0, "")
        connection.reply(http, status, headers, body)

    def _health(self) -> tuple[int, Headers, bytes]:
        if self.draining:
            return 503, JSON, b'{"status": "draining"}'
        if not self.router.endpoints.backends:
            return 503, JSON, b'{"status": "no engine takes requests"}'
        return 200, JSON, b'{"status": "ok"}'

    def _metrics(self) -> tuple[int, Headers, bytes]:
        return 200, TEXT, self.router.metrics.text(len(self.router.active))

    def _knows(self, http: HttpRequest) -> bool:
        assert self._tokens is not None
        shown = next((value for name, value in http.headers if name == b"authorization"), b"")
        scheme, _, token = shown.partition(b" ")
        role = self._tokens.role(token.strip().decode(errors="replace"))
        return scheme.lower() == b"bearer" and role is not None and Role.CLIENT in role

    async def _deny(
        self, connection: Connection, http: HttpRequest, route: str, waiting: "_Denied"
    ) -> None:
        """Late, if many come."""
        await self._strangers.wait(f"ip:{connection.peer}:0")
        if not waiting.is_gone:
            error = RefusedError(401, "no API key of this front's: send one as a Bearer", UNKNOWN)
            self._refuse(connection, http, route, error)

    def _refuse(
        self, connection: Connection, http: HttpRequest, route: str, error: RefusedError
    ) -> None:
        self.router.metrics.ended(route, http.method, error.status, 0.0, "refused")
        connection.refuse(http, error)


class _Denied:
    """Waits for its answer."""

    is_gone = False

    def hang_up(self) -> None:
        self.is_gone = True

    def pause(self) -> None: ...

    def resume(self) -> None: ...


def _origin(http: HttpRequest) -> bytes:
    """The path; a target that names a host loses it, since that is what a proxy would be asked."""
    target = http.target
    if not target.startswith(b"/") and b"://" in target:
        _, _, target = target.partition(b"://")
        http.target = target = b"/" + target.partition(b"/")[2]
    return target.partition(b"?")[0].partition(b"#")[0]


def _check(method: bytes, allowed: bytes) -> None:
    if method != allowed:
        name = allowed.decode()
        raise RefusedError(405, f"this route is for {name}", [(b"allow", allowed)])
