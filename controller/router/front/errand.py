"""A request on its way to an engine: to a rank that takes it, or held until there is one."""

from abc import abstractmethod
from math import inf

from controller.router.bodies.asked import Asked
from controller.router.desk.desk import Desk
from controller.router.pool.doors import Seat
from controller.router.scheduling.request import Decision, Request
from controller.router.wire.heads import Headers
from controller.router.wire.house import Arrived
from controller.router.wire.upstream import LostError, Taker, Upstream

RETRY_AFTER: Headers = [(b"retry-after", b"5")]


class Errand(Taker):
    """One request, which is sent again where that is safe. due_s: when it has waited too long;
    place_name, tries: where it is, and how many ranks it was sent to"""

    def __init__(self, desk: Desk, arrived: Arrived, route: str, asked: Asked) -> None:
        self._desk, self._arrived, self._asked = desk, arrived, asked
        self.route = route
        self._path, self._body = arrived.target, arrived.body
        self._head = b""
        self._request: Request | None = None
        self._decision: Decision | None = None
        self._seat: Seat | None = None
        self._upstream: Upstream | None = None
        self._events = self._losses = self.tries = 0
        self._held_until_s, self.due_s = 0.0, inf
        self.is_over, self.place_name = False, ""

    @abstractmethod
    def _fail(self, status: int, message: str, headers: Headers, fault: str) -> None:
        """It cannot be answered."""

    def begin(self) -> None:
        desk, asked = self._desk, self._asked
        desk.active.add(self)
        self._head = desk.head(self._arrived.headers)
        if asked.text and desk.tokenizing is not None:
            desk.tokenizing.encode(asked, self.place)
        else:
            self.place()

    def place(self) -> None:
        """To the rank that the scheduler chooses; where there is none it waits for one."""
        if self.is_over:
            return
        desk = self._desk
        if self._request is None:
            self._request = self._asked.request()
        chosen = desk.choose(self._request)
        if chosen is None:
            self._hold()
            return
        self._decision, self._seat = decision, seat = chosen
        self.tries += 1
        self.place_name = f"{decision.engine}/{decision.rank}"
        self.due_s = desk.tick_s + desk.limits.first_s
        if (connection := seat.door.server.take()) is not None:
            self._send(connection)
        else:
            desk.spawn(self._connect(seat))

    async def _connect(self, seat: Seat) -> None:
        try:
            connection = await seat.door.server.connect()
        except LostError as error:
            if self._seat is seat:
                self._away(str(error))
            return
        if self._seat is seat:
            self._send(connection)
        else:  # it was given up meanwhile
            seat.door.server.keep(connection)

    def _send(self, connection: Upstream) -> None:
        seat = self._seat
        assert seat is not None
        self._upstream, self._events = connection, 0
        connection.send(self, b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
            self._arrived.method, self._path, seat.door.server.address.authority, self._head,
            seat.line, len(self._body), self._body,
        ))  # fmt: skip

    def _hold(self) -> None:
        """Until a rank takes requests."""
        desk = self._desk
        if not self._held_until_s:
            self._held_until_s = desk.tick_s + desk.limits.hold_s
            desk.figures.held += 1
        if desk.tick_s >= self._held_until_s:
            self._fail(503, "no engine takes requests: try again later", RETRY_AFTER, "held")
        elif len(desk.held) >= desk.limits.held:
            self._fail(429, "too many requests wait: try again later", RETRY_AFTER, "overload")
        else:
            self.due_s = self._held_until_s
            desk.held.append(self)

    def _away(self, why: str) -> None:
        """The engine takes no requests, so it did not begin this one."""
        seat = self._leave()
        self._desk.doors.shut(seat.door, why)
        self._again()

    def _again(self) -> None:
        self._desk.figures.retried(self.route)
        self.place()

    def _leave(self, generated: int | None = None) -> Seat:
        """The rank that it was sent to. generated: tokens, if that is not the events that came"""
        seat, decision, upstream = self._seat, self._decision, self._upstream
        assert seat is not None
        assert decision is not None
        self._seat = self._decision = self._upstream = None
        if upstream is not None and upstream.taker is self:
            upstream.abandon()
        self._desk.ended(decision, seat, self._events if generated is None else generated)
        return seat

    def _lost(self, why: str) -> None:
        """An engine died with it, or answers nonsense: another one may have it, but not all."""
        self._losses += 1
        if self._losses < self._desk.limits.losses:
            self._again()
            return
        self._desk.figures.exhausted(self.route)
        self._fail(502, f"{why}: this request was lost {self._losses} times", [], "lost")
