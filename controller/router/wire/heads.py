"""Heads of HTTP/1.1 messages: what passes from side to side; and errors in OpenAI's form."""

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import TypeAlias

Headers: TypeAlias = list[tuple[bytes, bytes]]  # names in lower case

RANK = b"x-data-parallel-rank"
# Of this connection, and not of what goes on behind it (RFC 9110, 7.6.1).
HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
     b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)  # fmt: skip
# What a request has anew; a client does not choose its rank, and answers are read, so not packed.
OWN = HOP | {b"host", b"content-length", b"expect", b"accept-encoding", RANK}
OWN_OF_ANSWERS = HOP | {b"content-length"}
STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
JSON: Headers = [(b"content-type", b"application/json")]
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error"}  # fmt: skip


class RefusedError(Exception):
    """What a client is answered instead of what it asked for."""

    def __init__(self, status: int, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or []


def passed_on(headers: Headers, but: frozenset[bytes] | set[bytes]) -> Headers:
    """Those that are for the other side too: none of ``but``, and none that Connection names."""
    found = [one for one in headers if one[0] not in but]
    for name, value in headers:
        if name == b"connection" and (value := value.lower()) not in (b"keep-alive", b"close"):
            named = {one.strip() for one in value.split(b",")}
            found = [one for one in found if one[0] not in named]
    return found


def lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % one for one in headers])


def answer(status: int, headers: Headers, body: bytes, keep_alive: bool) -> bytes:
    """A whole answer."""
    return b"%b%bcontent-length: %d\r\n%b\r\n%b" % (
        status_line(status), lines(headers), len(body), kept(keep_alive), body,
    )  # fmt: skip


def status_line(status: int) -> bytes:
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def kept(keep_alive: bool) -> bytes:
    return b"" if keep_alive else b"connection: close\r\n"


def error(status: int, message: str) -> bytes:
    """A body in OpenAI's form."""
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    told = {"message": message, "type": kind, "param": None, "code": status}
    return json.dumps({"error": told}).encode()
