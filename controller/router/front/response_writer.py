"""An answer on its way to a client."""

from controller.router.wire import heads
from controller.router.wire.application import HttpRequest
from controller.router.wire.connection import Connection
from controller.router.wire.heads import Headers


class ResponseWriter:
    """Writes one answer, whole or piece by piece. begun: whether the client has any of it; status,
    size: what it got; keeps_alive: whether another request may follow"""

    __slots__ = ("_connection", "_is_chunked", "begun", "keeps_alive", "size", "status")

    def __init__(self, connection: Connection, http: HttpRequest) -> None:
        self._connection = connection
        self._is_chunked = not http.is_http10
        self.keeps_alive = http.keep_alive
        self.begun, self.status, self.size = False, 0, 0

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.begun, self.status, self.size = True, status, len(body)
        self.keeps_alive = self.keeps_alive and not self._connection.closes
        self._connection.transport.write(heads.answer(status, headers, body, self.keeps_alive))

    def more(self, data: bytes) -> None:
        """What comes between the first piece and the last one."""
        self.size += len(data)
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.transport.write(data)

    def piece(self, status: int, headers: Headers, data: bytes, is_last: bool) -> None:
        """status, headers: written before the first one"""
        parts = []
        if not self.begun:
            self.begun, self.status = True, status
            self.keeps_alive = self.keeps_alive and self._is_chunked and not self._connection.closes
            way = b"transfer-encoding: chunked\r\n" if self._is_chunked else b""
            kept = heads.kept(self.keeps_alive)
            parts = [heads.status_line(status), heads.lines(headers), way, kept, b"\r\n"]
        self.size += len(data)
        if not self._is_chunked:
            parts.append(data)
        else:
            if data:
                parts += b"%x\r\n" % len(data), data, b"\r\n"
            if is_last:
                parts.append(b"0\r\n\r\n")
        self._connection.transport.write(b"".join(parts))
