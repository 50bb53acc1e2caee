"""An engine's answer as it passes a gateway: how many tokens were generated, as far as one sees."""

import re

TAIL = 1024  # bytes at an answer's end, in which its usage stands
_COMPLETED = re.compile(rb'"completion_tokens": ?(\d+)')


class Answer:
    """status: 0 until its headers came; seen: bytes of its body; is_shown: whether it will be"""

    __slots__ = ("_events", "_is_stream", "_tail", "is_shown", "seen", "status")

    def __init__(self, is_shown: bool) -> None:
        self.is_shown = is_shown
        self.status = self.seen = self._events = 0
        self._is_stream, self._tail = False, b""

    def head(self, status: int, kind: bytes) -> None:
        self.status, self._is_stream = status, kind.startswith(b"text/event-stream")

    def add(self, body: bytes) -> None:
        self.seen += len(body)
        if self._is_stream:
            self._events += body.count(b"\n\n")
        self._tail = (self._tail + body)[-TAIL:]

    def generated(self, most: int) -> int:
        """Tokens: as its usage says, or else one an event. most: that may be; taken where its
        body is not shown, so that nothing else can be told"""
        if self.status >= 400 or not self.status:
            return 0
        if not self.is_shown:
            return most
        found = _COMPLETED.findall(self._tail)
        return int(found[-1]) if found else self._events
