"""A connection to an engine: one request at a time, and the answer to it."""

import asyncio
from typing import Any, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from controller.router.wire.addresses import Address
from controller.router.wire.heads import Headers
from placer.errors import PlacerError

MOST_HEADERS = 200
HEAD_BYTES = 2**17  # of an answer


class LostError(PlacerError):
    """A server that does not answer, or as none should. untouched: it never began to answer on a
    connection that had been kept, as one that was closed meanwhile"""

    def __init__(self, why: str, untouched: bool = False) -> None:
        super().__init__(why)
        self.untouched = untouched


class Taker(Protocol):
    """Whoever waits for an answer."""

    __slots__ = ()

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_data(self, data: bytes, is_last: bool) -> None:
        """Some of its body; empty only if it is the last."""

    def on_lost(self, error: LostError) -> None:
        """Nothing more comes."""


class Owner(Protocol):
    """Who has connections to engines. open: all that there are"""

    address: Address
    open: set[Any]

    def keep(self, one: Any) -> None:
        """This one is free for another request."""


class Upstream(asyncio.Protocol):
    """One connection. taker: of the answer that is awaited"""

    __slots__ = (
        "_before", "_complete", "_fault", "_framed", "_headers", "_is_head", "_parser", "_parts",
        "_server", "_size", "_status", "_stays", "_told", "closed", "taker", "transport",
        "was_kept",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._parser = HttpResponseParser(self)
        self.taker: Taker | None = None
        self.closed = False
        self.was_kept = False  # so that the server may have closed it meanwhile
        self._clear()

    def _clear(self) -> None:
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self._status = self._size = 0
        self._told = self._complete = self._framed = self._stays = self._is_head = False
        self._fault = ""
        self._before = True  # nothing of the answer has come

    def send(self, taker: Taker, data: bytes) -> None:
        self._clear()
        self.taker = taker
        self.transport.write(data)

    def abandon(self) -> None:
        """Nobody waits for the answer any more: the server is told by closing."""
        self.taker = None
        self.close()

    def close(self) -> None:
        self.closed = True
        self.transport.abort()

    # Of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are of their own kind
        self._server.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._server.open.discard(self)
        taker, self.taker = self.taker, None
        if taker is None:
            return
        if self._told and not self._framed and exc is None:  # an answer that ends so
            taker.on_data(b"", True)
        else:
            untouched = self._before and self.was_kept
            taker.on_lost(LostError(f"{self._server.address.url} hung up", untouched))

    def data_received(self, data: bytes) -> None:
        """Whoever takes what was parsed may abandon this connection meanwhile."""
        taker = self.taker
        if taker is None:  # nobody asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._fault = "upgrades to another protocol"
        except HttpParserError as error:
            self._fault = self._fault or str(error)[:200] or type(error).__name__
        if not self._told:
            self._tell(taker, len(data))
            if self.taker is not taker:
                return
        parts = self._parts
        if parts:
            self._parts = []
        if self._complete:
            self._end(taker, parts)
        else:
            if parts:
                taker.on_data(parts[0] if len(parts) == 1 else b"".join(parts), False)
            if self._fault and self.taker is taker:
                self.abandon()
                fault = f"{self._server.address.url} answers garbage: {self._fault}"
                taker.on_lost(LostError(fault))

    # Of the parser.

    def on_message_begin(self) -> None:
        if self._complete:
            self._fault = "an answer that nobody asked for"
        self._headers = []

    def on_header(self, name: bytes, value: bytes | None) -> None:
        if self._is_head:  # a trailer
            return
        self._headers.append((name.lower(), value or b""))
        if len(self._headers) > MOST_HEADERS:
            self._fault = f"more than {MOST_HEADERS} headers"
            raise ValueError(self._fault)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status >= 200:  # those below come before the answer
            self._is_head = True
            names = [name for name, _ in self._headers]
            self._framed = b"content-length" in names or b"transfer-encoding" in names

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._is_head
        self._stays = self._framed and self._parser.should_keep_alive()  # which is known only now

    # Its own.

    def _tell(self, taker: Taker, size: int) -> None:
        """The head, once it is whole."""
        self._before = False
        self._size += size
        if self._is_head:
            self._told = True
            taker.on_head(self._status, self._headers)
        elif self._size > HEAD_BYTES:
            self._fault = f"more than {HEAD_BYTES:,} bytes of headers"

    def _end(self, taker: Taker, parts: list[bytes]) -> None:
        self.taker = None
        if self._stays and not self._fault:
            self._server.keep(self)
        else:
            self.close()
        taker.on_data(parts[0] if len(parts) == 1 else b"".join(parts), True)
