"""A client's connection: strict parsing, bounded in size and time, one request after another."""

import asyncio
import re
from collections import deque
from math import inf
from typing import Literal, cast

from httptools import HttpParserError, HttpRequestParser

from controller.router.wire import heads
from controller.router.wire.application import Application, HttpRequest, Running
from controller.router.wire.heads import Headers, RefusedError

MOST_HEADERS = 100
HEAD_BYTES = 2**16  # of a request line and its headers
TARGET_BYTES = 2**13
PIPELINED = 64  # requests that may wait for the one before
AGAIN: Headers = [(b"retry-after", b"1")]
_HOST = re.compile(rb"[\w.~%!$&'()*+,;=:\[\]-]*", re.ASCII).fullmatch  # RFC 3986, 3.2
LINGER_S = 2.0  # in which a client may read why it is refused, while it still sends


class Connection(asyncio.Protocol):
    """running: what answers the request of now; due_s: when something has taken too long; paused:
    whether the client reads too slowly; closes: whether the next answer is the last"""

    __slots__ = (
        "_application",
        "_body",
        "_bytes",
        "_ends",
        "_fault",
        "_fed",
        "_fields",
        "_head",
        "_later",
        "_limits",
        "_parser",
        "_patience_s",
        "_phase",
        "_size",
        "_target",
        "_timed",
        "_version",
        "_waiting",
        "closes",
        "due_s",
        "paused",
        "peer",
        "running",
        "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, application: Application) -> None:
        self._application, self._limits = application, application.limits
        self._parser = HttpRequestParser(self)
        limits = self._limits
        self._patience_s = {"idle": limits.idle_s, "head": limits.head_s, "body": limits.body_s}
        self._phase: Literal["idle", "head", "body"] = "idle"  # of what is parsed
        self._timed = ""  # the phase that due_s is of
        self._head: Headers = []
        self._body: list[bytes] = []
        self._target = self._later = b""
        self._version = "1.1"
        self._fields = self._fed = self._size = 0  # headers; bytes since the last that counted
        self._bytes = 0  # that are reserved
        self._ends = False  # nothing is read any more
        self._waiting: deque[HttpRequest] = deque()
        self._fault: RefusedError | None = None  # of what came after those that wait
        self.running: Running | None = None
        self.due_s, self.paused, self.closes, self.peer = inf, False, False, ""

    # Of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are of their own kind
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) else "unix"
        self._wait()
        if not self._application.entered(self):
            self._refuse(RefusedError(429, "too many connections: try again later", AGAIN))

    def connection_lost(self, exc: Exception | None) -> None:
        self._application.left(self)
        self._ends, self.due_s = True, inf
        self._waiting.clear()
        self._reserve(-self._bytes)
        running, self.running = self.running, None
        if running is not None:
            running.hang_up()

    def data_received(self, data: bytes) -> None:
        if self._ends or self._fault is not None:
            return
        if self.running is not None:  # it sends the next before it has read this one's answer
            self._later += data
            self.transport.pause_reading()
            return
        self._feed(data)

    def pause_writing(self) -> None:
        self.paused, self.due_s = True, self._application.tick_s + self._limits.stall_s
        if self.running is not None:
            self.running.pause()

    def resume_writing(self) -> None:
        self.paused = False
        self._wait()
        if self.running is not None:
            self.running.resume()

    # Of the parser.

    def on_message_begin(self) -> None:
        self._head, self._body, self._target = [], [], b""
        self._phase, self._fields, self._size = "head", 0, 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > TARGET_BYTES:
            raise self._bad(414, f"the target has more than {TARGET_BYTES:,} bytes")

    def on_header(self, name: bytes, value: bytes | None) -> None:
        self._fields += 1
        if self._fields > MOST_HEADERS:
            raise self._bad(431, f"more than {MOST_HEADERS} headers")
        if self._phase == "head":  # and not a trailer
            name = name.lower()
            if name != b"content-length":
                self._head.append((name, value or b""))
            elif int(value or b"0") > self._limits.request_bytes:
                raise self._bad(413, self._too_large())

    def on_headers_complete(self) -> None:
        self._version = self._parser.get_http_version()
        if self._version not in ("1.0", "1.1"):
            raise self._bad(505, f"HTTP/{self._version}: this front speaks 1.1")
        if self._parser.should_upgrade():
            raise self._bad(501, "this front upgrades to no other protocol, and is no proxy")
        hosts, expects = 0, b""
        for name, value in self._head:
            if name == b"host":
                hosts += 1
                if not _HOST(value):
                    raise self._bad(400, "Host is no host: send its name, and its port")
            elif name == b"expect":
                expects = value
        if hosts > 1 or (not hosts and self._version == "1.1"):
            raise self._bad(400, f"{hosts} Host headers: send one")
        if expects and self._version == "1.1":  # 1.0 knows no 100
            self._go_on(expects)
        self._phase, self._fed = "body", 0

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._limits.request_bytes:
            raise self._bad(413, self._too_large())
        if not self._reserve(len(body)):
            raise self._bad(429, "no memory for more requests: try again later", AGAIN)
        self._fed = 0
        self._body.append(body)

    def on_message_complete(self) -> None:
        parser, body = self._parser, self._body
        self._phase, self._fed, self._body = "idle", 0, []
        self._waiting.append(HttpRequest(
            parser.get_method(), self._target, self._head,
            body[0] if len(body) == 1 else b"".join(body),
            parser.should_keep_alive(), self._version == "1.0",
        ))  # fmt: skip
        if len(self._waiting) > PIPELINED:
            raise self._bad(400, f"more than {PIPELINED} requests sent ahead")

    # Of what answers.

    def reply(self, http: HttpRequest, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer, and on to the next request."""
        keep_alive = http.keep_alive and not self.closes
        answer = heads.answer(status, headers, body, keep_alive)
        if http.method == b"HEAD":
            answer = answer[: len(answer) - len(body)]
        self.transport.write(answer)
        self.done(http, keep_alive)

    def refuse(self, http: HttpRequest, error: RefusedError) -> None:
        body = heads.error(error.status, error.message)
        self.reply(http, error.status, heads.JSON + error.headers, body)

    def done(self, http: HttpRequest, keep_alive: bool) -> None:
        """Its answer is written: on to what came meanwhile."""
        self.running = None
        self._reserve(-len(http.body))
        if self._ends:
            return
        if not keep_alive or self.closes:
            self.end()
            return
        self._wait()
        self._next()
        if self._later and self.running is None and not self._ends:
            later, self._later = self._later, b""
            self.transport.resume_reading()
            self._feed(later)

    def end(self) -> None:
        """Once what was written is sent; what still comes is not read."""
        self._ends, self.due_s = True, self._application.tick_s + LINGER_S
        self._waiting.clear()
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()  # a reset could overtake the answer
        else:
            self.transport.close()

    def expire(self) -> None:
        """``due_s`` has passed."""
        if self._phase == "idle" or self._ends or self.running is not None or self.paused:
            self.transport.abort()
        else:
            self._refuse(RefusedError(408, f"the {self._phase} of this request took too long"))

    def drain(self) -> None:
        """End once nothing runs."""
        self.closes = True
        if self.running is None and not self._ends:
            self.end()

    # Its own.

    def _feed(self, data: bytes) -> None:
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
            if self._fed > HEAD_BYTES:  # of chunks' extensions and trailers, too
                self._bad(431, f"more than {HEAD_BYTES:,} bytes of headers")
        except HttpParserError as error:
            if self._fault is None:
                if error.__context__ is not None:
                    raise
                self._bad(400, f"this is no HTTP/1.1: {str(error)[:200] or type(error).__name__}")
        self._next()
        if self._phase != self._timed and self.running is None:
            self._wait()

    def _next(self) -> None:
        """What came is answered in its order, and what could not be parsed at last."""
        while self._waiting and self.running is None and not self._ends:
            self.due_s = inf
            self._application.handle(self, self._waiting.popleft())
        if self._fault is not None and self.running is None and not self._ends:
            self._refuse(self._fault)

    def _go_on(self, expected: bytes) -> None:
        if expected.lower() != b"100-continue":
            raise self._bad(417, "only 100-continue can be expected of this front")
        if not self._waiting:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _wait(self) -> None:
        """For what is next."""
        if self.paused or self._ends:
            return
        if self.running is not None:
            self.due_s = inf
        else:
            self._timed = self._phase  # its time is not longer if more of it comes
            self.due_s = self._application.tick_s + self._patience_s[self._phase]

    def _bad(self, status: int, message: str, headers: Headers | None = None) -> RefusedError:
        """To be raised where the parser calls: it tells of an error, and not of which."""
        self._fault = RefusedError(status, message, headers)
        return self._fault

    def _refuse(self, error: RefusedError) -> None:
        """What could not be parsed: nothing after it can be, either."""
        self._reserve(-self._bytes)
        told = heads.error(error.status, error.message)
        headers = heads.JSON + error.headers
        self.transport.write(heads.answer(error.status, headers, told, keep_alive=False))
        self.end()

    def _reserve(self, size: int) -> bool:
        self._bytes += size
        return self._application.reserve(size)

    def _too_large(self) -> str:
        return f"the body has more than {self._limits.request_bytes:,} bytes"
