"""What comes back: from an engine, or from several in turn, to the client as one answer."""

import re

from controller.router.bodies.parsed_body import ParsedBody
from controller.router.bodies.splice import DONE, Splice
from controller.router.bodies.transcript import Transcript
from controller.router.front.proxied_request import RETRY_AFTER, ProxiedRequest
from controller.router.front.response_writer import ResponseWriter
from controller.router.shared.request_router import RequestRouter
from controller.router.wire import heads
from controller.router.wire.application import HttpRequest
from controller.router.wire.connection import Connection
from controller.router.wire.heads import JSON, OWN_OF_ANSWERS, Headers
from controller.router.wire.upstream import LostError, Upstream

AWAY = 503  # an engine that changes its width
GATEWAYS = frozenset({502, 504})  # say that the engine behind them is lost
COMPLETIONS = b"/v1/completions"
_STREAM = b"text/event-stream"
_NO_RANK = re.compile(rb"rank[^\n]{0,40}out of range")
_COMPLETED = re.compile(rb'"completion_tokens": ?(\d+)')
_FAULT = b'data: {"error"'
_CODE_5XX = re.compile(rb'"code": ?5\d\d')


class Exchange(ProxiedRequest):
    """A request and its answer. Nothing is asked again once the client has a byte of it, but for a
    stream that can go on from its tokens. why: in the access log"""

    __slots__ = (
        "_client", "_headers", "_is_stream", "_parts", "_rest", "_size", "_splice", "_status",
        "_transcript", "_writer", "begun_s", "why",
    )  # fmt: skip

    def __init__(
        self,
        router: RequestRouter,
        client: Connection,
        http: HttpRequest,
        route: str,
        parsed: ParsedBody,
    ) -> None:
        super().__init__(router, http, route, parsed)
        self._client = client
        self._writer = ResponseWriter(client, http)
        self._splice: Splice | None = None
        self._rest = b""
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._size = self._status = 0
        self._is_stream = False
        self.begun_s, self.why = router.clock.monotonic(), ""
        whole = parsed.whole
        self._transcript = (
            None if whole is None else Transcript(whole.get("return_token_ids") is True)
        )
        if whole is not None and "return_token_ids" not in whole:
            start = self._body.index(b"{") + 1
            asks = b'"return_token_ids":true,'
            self._body = b"".join((self._body[:start], asks, self._body[start:]))

    # Of the engine.

    def _send(self, connection: Upstream) -> None:
        self._parts, self._size, self._rest = [], 0, b""
        super()._send(connection)
        if self._client.paused:
            self.pause()

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status
        # Who goes on answering so while it takes others means this request.
        if status == AWAY and self.tries <= 2 * len(self._router.endpoints.all):
            self._away(f"{self._url()} answers {status}")
        elif status in GATEWAYS:
            self.on_lost(LostError(f"{self._url()} answers {status}"))
        else:
            kind = next((value for name, value in headers if name == b"content-type"), b"")
            self._is_stream = status == 200 and kind.startswith(_STREAM)
            if not self._writer.begun:
                self._headers = heads.passed_on(headers, OWN_OF_ANSWERS)
            elif not self._is_stream:
                self._is_stream = True
                self._stop(f"the engine that was to go on answers {status}")

    def on_data(self, data: bytes, is_last: bool) -> None:
        limits = self._router.limits
        self.due_s = self._router.tick_s + limits.gap_s
        if self._is_stream:
            self._events_came(data, is_last)
            return
        self._size += len(data)
        if self._writer.begun:
            self._pass_on(data, is_last)
            return
        self._parts.append(data)
        if is_last:
            self._answered(b"".join(self._parts))
        elif self._size > limits.answer_bytes:  # too long to be kept back
            self._pass_on(b"".join(self._parts), False)

    def on_lost(self, error: LostError) -> None:
        backend = self._leave()
        if not error.untouched:  # another one, if there is one
            self._router.endpoints.shut(backend.endpoint, str(error))
        if self._writer.begun:
            self._cut(str(error))
        elif error.untouched:
            self.place()
        else:
            self._lost(str(error))

    def _answered(self, body: bytes) -> None:
        """All of it, of which the client has nothing yet."""
        if self._status >= 400 and self._rank_is_gone(body):
            return
        found = _COMPLETED.search(body)
        self._leave(int(found[1]) if found else 0)
        self._writer.whole(self._status, self._headers, body)
        self._finish("" if self._status < 400 else "engine")

    def _events_came(self, data: bytes, is_last: bool) -> None:
        """Events are passed on whole, so that a stream which is cut is cut between two."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        if not (is_last or data.endswith(b"\n\n")):
            end = data.rfind(b"\n\n") + 2
            if end < 2:
                end = data.rfind(b"\r\n\r\n") + 4
                end = 0 if end < 4 else end
            data, self._rest = data[:end], data[end:]
            if len(self._rest) > self._router.limits.event_bytes:
                self._stop(f"an event of more than {self._router.limits.event_bytes:,} bytes")
                return
            if not data:
                return
        if _FAULT in data and self._failed(data):
            return
        if not self._events and self._decision is not None:
            self._router.scheduler.began(self._decision)
        self._events += data.count(b"\n") // 2  # each is a line and an empty one
        self._pass_on(self._told(data), is_last)

    def _told(self, events: bytes) -> bytes:
        """As the client gets them."""
        if self._transcript is None:
            return events
        shown = self._transcript.add(events)
        return shown if self._splice is None else self._splice.told(events)

    def _failed(self, data: bytes) -> bool:
        """An error in place of an event; whether it is the engine's, and nothing to be told."""
        if not self._writer.begun and self._rank_is_gone(data):
            return True
        if not _CODE_5XX.search(data):
            return False  # the request's
        if before := data[: data.index(_FAULT)]:
            self._pass_on(self._told(before), False)
        self._rest = b""
        self.on_lost(LostError(f"{self._url()} fails in a stream"))
        return True

    def _rank_is_gone(self, answer: bytes) -> bool:
        """Between the decision and the request: the engine is asked anew which it has."""
        if self._backend is None or not self._backend.line or not _NO_RANK.search(answer):
            return False
        self._losses += 1
        if self._losses >= self._router.limits.losses:
            return False
        self._away(f"{self._url()} has no such rank any more")
        return True

    def _cut(self, why: str) -> None:
        """The engine is lost, and the client has the beginning."""
        if not self._is_stream:
            self.why = why
            self._client.transport.abort()  # it sees that the end is missing
            return
        if self._transcript is None or self._parsed.whole is None:
            self._stop(why)
            return
        info = self._router.endpoints.info()
        try:
            splice = Splice(self._parsed.whole, self._transcript, info.longest if info else 0)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            self._stop(f"{why}, and it cannot go on elsewhere ({error})")
            return
        self._router.metrics.cut["continued"] += 1
        if splice.is_over:
            self._pass_on(splice.rest(), True)
            return
        self._splice, self._path, self._body = splice, COMPLETIONS, splice.body
        self._held_until_s = 0.0
        self.place()

    # Of the client.

    def hang_up(self) -> None:
        if self._backend is not None:
            self._leave()
        self.why = self.why or "the client hung up"
        self._end("client", 499)

    def pause(self) -> None:
        if self._upstream is not None and not self._upstream.closed:
            self._upstream.transport.pause_reading()

    def resume(self) -> None:
        if self._upstream is not None and not self._upstream.closed:
            self._upstream.transport.resume_reading()

    def expire(self) -> None:
        """``due_s`` has passed."""
        if self._backend is None:
            self._fail(503, "no engine took this request: try again later", RETRY_AFTER, "held")
        elif self._client.paused:  # it is not the engine that takes its time
            self.due_s = self._router.tick_s + self._router.limits.gap_s
        else:
            self._leave()
            self._fail(504, "the engine took too long", [], "timeout")

    def give_up(self, why: str) -> None:
        """The front has no more time."""
        if self._backend is not None:
            self._leave()
        self._fail(503, why, RETRY_AFTER, "shutdown")

    def _stop(self, why: str) -> None:
        """A stream ends with an error."""
        if self._backend is not None:
            self._leave()
        if not self._writer.begun:
            self._lost(why)
            return
        self._router.metrics.cut["ended"] += 1
        self.why = why
        told = b"data: %b\n\n" % heads.error(502, f"the stream was cut: {why}")
        self._pass_on(told + DONE, True, "cut")

    def _pass_on(self, data: bytes, is_last: bool, fault: str = "") -> None:
        writer = self._writer
        if writer.begun and not is_last:
            writer.more(data)
            return
        writer.piece(self._status, self._headers, data, is_last)
        if is_last:
            if self._backend is not None:
                self._leave()
            self._finish(fault)

    def _fail(self, status: int, message: str, headers: Headers, fault: str) -> None:
        if self._writer.begun and self._is_stream:
            self._stop(message)
        elif self._writer.begun:
            self._client.transport.abort()
        else:
            self.why = message
            self._writer.whole(status, JSON + headers, heads.error(status, message))
            self._finish(fault)

    def _finish(self, fault: str) -> None:
        """The client has all of it."""
        self._end(fault, self._writer.status)
        self._client.done(self._http, self._writer.keeps_alive)

    def _end(self, fault: str, status: int) -> None:
        self.is_over = True
        router = self._router
        router.active.discard(self)
        if self in router.held:
            router.held.remove(self)
        seconds = router.clock.monotonic() - self.begun_s
        router.metrics.ended(self.route, self._http.method, status, seconds, fault)
        if router.log.is_on:
            router.log.add(
                self._client.peer, self._http.method, self.route, status, self._writer.size,
                seconds, self.place_name, self.tries, self.why,
            )  # fmt: skip

    def _url(self) -> str:
        return self._backend.endpoint.url if self._backend else ""
