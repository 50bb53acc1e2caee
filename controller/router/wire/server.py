"""One address, and the connections to it, which are kept alive."""

import asyncio
import ssl
from collections.abc import Iterable
from typing import NamedTuple

from controller.router.wire.addresses import Address
from controller.router.wire.heads import Headers, lines
from controller.router.wire.upstream import LostError, Upstream
from placer.clock import Clock

CONNECT_S = 5.0
KEPT = 512  # connections that wait for the next request


class Reply(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class Server:
    """One address, and the connections to it. open: all of them; those kept wait for requests;
    reached: ip:port of the last one, empty before"""

    def __init__(self, address: Address, clock: Clock, tls: ssl.SSLContext | None = None) -> None:
        self.address, self._clock = address, clock
        self._tls = (tls or ssl.create_default_context()) if address.tls else None
        self.open: set[Upstream] = set()
        self.reached = ""
        self._kept: list[Upstream] = []

    def take(self) -> Upstream | None:
        """One that was kept, the last one first."""
        while self._kept:
            found = self._kept.pop()
            if not found.closed and not found.transport.is_closing():
                return found
        return None

    def keep(self, one: Upstream) -> None:
        one.was_kept = True
        if len(self._kept) < KEPT:
            self._kept.append(one)
        else:
            one.close()

    async def connect(self) -> Upstream:
        """Raises LostError."""
        where = self.address
        loop = asyncio.get_running_loop()
        try:
            async with self._clock.timeout(CONNECT_S):
                _, one = await loop.create_connection(
                    lambda: Upstream(self), where.host, where.port, ssl=self._tls
                )
        except (OSError, TimeoutError, UnicodeError) as error:
            why = " ".join(str(error).split())[:200] or f"no connection in {CONNECT_S:g} s"
            raise LostError(f"{where.url} cannot be reached ({why})") from error
        if (peer := one.transport.get_extra_info("peername")) is not None:
            self.reached = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        return one

    async def ask(
        self, method: str, path: str, deadline_s: float,
        headers: Iterable[tuple[bytes, bytes]] = (), body: bytes = b"", most: int = 2**22,
    ) -> Reply:  # fmt: skip
        """A whole answer of at most so many bytes. Raises LostError."""
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n%b\r\n" % (
            method.encode(), path.encode(), self.address.authority, len(body), lines(headers)
        )  # fmt: skip
        kept = self.take()
        for one in ([kept] if kept else []) + [None]:
            taker = _Whole(most)
            try:
                async with self._clock.timeout(deadline_s):
                    one = one or await self.connect()
                    one.send(taker, head + body)
                    return await taker.reply
            except TimeoutError as error:
                raise LostError(
                    f"{self.address.url} does not answer in {deadline_s:g} s"
                ) from error
            except LostError as error:
                if not error.untouched:
                    raise
            finally:
                if one is not None and one.taker is taker:
                    one.abandon()
        raise LostError(f"{self.address.url} hung up")

    def close(self) -> None:
        for one in list(self.open):
            one.close()


class _Whole:
    """The taker of a whole answer."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._status = 0
        self._headers: Headers = []
        self._parts: list[bytes] = []
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def on_head(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers

    def on_data(self, data: bytes, is_last: bool) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self.reply.done():
            return
        if self._size > self._most:
            self.reply.set_exception(LostError(f"an answer of more than {self._most:,} bytes"))
        elif is_last:
            self.reply.set_result(Reply(self._status, self._headers, b"".join(self._parts)))

    def on_lost(self, error: LostError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
