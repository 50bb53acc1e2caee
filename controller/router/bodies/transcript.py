"""What a stream has brought so far, so that another engine can go on with it."""

import json
import re
from contextlib import suppress
from typing import Any

KEPT_BYTES = 2**18  # of events that were not looked into yet
# Of tokens and of the prompt, in one pass: what is rare comes first, and then which name it ends.
_IDS = re.compile(rb'_ids"(?:(?<="token_ids")|(?<="prompt_token_ids")): ?\[[0-9, ]*\]')


class Transcript:
    """The events of one stream. They are looked into only if it is cut, or there are too many.

    prompt:     ids of the prompt's tokens; None if the engine did not tell
    tokens:     ids that were generated
    textless:   of them the last ones, of which no text came: half a character, say
    first:      the first event, whose names all others have
    has_ended:  a choice has a reason to end
    is_plain:   nothing but text came
    """

    def __init__(self, tells_ids: bool) -> None:
        """tells_ids: whether the client asked for tokens' ids itself"""
        self.tells_ids = tells_ids
        self.prompt: list[int] | None = None
        self.tokens: list[int] = []
        self.textless = 0
        self.first: dict[str, Any] = {}
        self.has_ended = False
        self.is_plain = True
        self._events: list[bytes] = []
        self._size = 0

    def add(self, events: bytes) -> bytes:
        """Whole events, and what the client sees of them."""
        self._events.append(events)
        self._size += len(events)
        if self._size > KEPT_BYTES:
            self.read()
        return events if self.tells_ids else shown(events)

    def read(self) -> None:
        """Look into what came."""
        events, self._events, self._size = b"".join(self._events), [], 0
        for data in data_of(events):
            self._see(data)

    def _see(self, data: dict[str, Any]) -> None:
        choices = data.get("choices")
        if not isinstance(choices, list):
            self.is_plain = False
            return
        if not self.first:
            self.first = data
        for told in (data, *choices):
            if self.prompt is None and told.get("prompt_token_ids"):
                self.prompt = told["prompt_token_ids"]
        for choice in choices:
            delta = choice.get("delta") or {}
            text = choice.get("text") or delta.get("content") or ""
            extra = {key for key, value in delta.items() if value} - {"role", "content"}
            if extra or choice.get("index", 0) != 0:
                self.is_plain = False
            ids = choice.get("token_ids") or []
            if text and not ids:
                self.is_plain = False  # text whose tokens nobody tells
            self.tokens += ids
            self.textless = 0 if text else self.textless + len(ids)
            if choice.get("finish_reason"):
                self.has_ended = True


def shown(events: bytes) -> bytes:
    """Without tokens' ids. In a text a quotation mark has a backslash: none is taken for these."""
    return _IDS.sub(b'_ids":null', events)


def data_of(events: bytes) -> list[dict[str, Any]]:
    """What each event says; of those that are not JSON, such as [DONE], nothing."""
    found = []
    for line in events.split(b"\n"):
        if line.startswith(b"data:"):
            with suppress(ValueError, RecursionError):
                data = json.loads(line[5:])
                if isinstance(data, dict):
                    found.append(data)
    return found
