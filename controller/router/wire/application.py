"""What a client's connection belongs to, and what it hands over."""

from dataclasses import dataclass
from typing import Any, Protocol

from controller.router.wire.heads import Headers


@dataclass(slots=True)
class HttpRequest:
    """One whole request. target: as it was sent; headers: in their order, names in lower case, but
    for Content-Length"""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    keep_alive: bool
    is_http10: bool


class Running(Protocol):
    """What answers a request."""

    def hang_up(self) -> None:
        """The client is gone."""

    def pause(self) -> None:
        """It reads too slowly: nothing more for now."""

    def resume(self) -> None: ...


class ReadLimits(Protocol):
    """Bytes of a body; seconds that a head, a body, an idle client and a slow reader may take."""

    @property
    def request_bytes(self) -> int: ...
    @property
    def head_s(self) -> float: ...
    @property
    def body_s(self) -> float: ...
    @property
    def idle_s(self) -> float: ...
    @property
    def stall_s(self) -> float: ...


class Application(Protocol):
    """What connections belong to."""

    @property
    def limits(self) -> ReadLimits: ...

    @property
    def tick_s(self) -> float:
        """The monotonic time, as of a moment ago."""

    def entered(self, connection: Any) -> bool:
        """Whether there is room for it."""

    def left(self, connection: Any) -> None: ...

    def reserve(self, size: int) -> bool:
        """Whether there is memory for so many more bytes of bodies; never refused if negative."""

    def handle(self, connection: Any, http: HttpRequest) -> None:
        """Answer it, and then say ``done``; until then be its ``running``."""
