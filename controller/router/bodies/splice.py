"""A stream that was cut, and goes on elsewhere from its prompt and the tokens that came."""

import json
from typing import Any

from controller.router.bodies.parsed_body import DEFAULT_MOST, NEUTRAL
from controller.router.bodies.transcript import Transcript, data_of

DONE = b"data: [DONE]\n\n"
NAMES = ("id", "object", "created", "model")
# Of a conversation, or said in the prompt's ids, or of no effect where a stream may go on; the rest
# of the request says how tokens are drawn, and stays.
_LEFT_OUT = (
    "messages", "max_completion_tokens", "chat_template_kwargs", "add_generation_prompt",
    "add_special_tokens", *NEUTRAL,
)  # fmt: skip


class Splice:
    """body: of the request to /v1/completions that goes on; is_over: nothing is left to generate

    Its answer is told in the form and under the names of the first part.
    """

    def __init__(self, parsed: dict[str, Any], transcript: Transcript, longest: int) -> None:
        """Raises ValueError where it cannot go on as if nothing had happened."""
        transcript.read()
        prompt = parsed.get("prompt")
        ids = prompt if isinstance(prompt, list) else transcript.prompt
        if ids is None or not transcript.is_plain or not transcript.first:
            raise ValueError("nobody told which tokens came")
        self._transcript, self._is_chat = transcript, "messages" in parsed
        self._prompt = len(ids)
        # The client saw no text of the last ones: they are generated again.
        dropped = 0 if transcript.tells_ids or transcript.has_ended else transcript.textless
        tokens = transcript.tokens[: len(transcript.tokens) - dropped]
        self._before = len(tokens)
        most = parsed.get("max_completion_tokens") or parsed.get("max_tokens")
        most = most or (longest - len(ids) if self._is_chat else DEFAULT_MOST)
        if most <= 0:
            raise ValueError("nobody told how many tokens may come")
        options = parsed.get("stream_options") or {}
        self._usage = bool(options.get("include_usage"))
        self.is_over = transcript.has_ended or self._before >= most
        more = {key: value for key, value in parsed.items() if key not in _LEFT_OUT}
        more |= {
            "prompt": [*ids, *tokens],
            "max_tokens": most - self._before,
            "stream": True,
            "return_token_ids": True,
        }
        if least := parsed.get("min_tokens"):
            more["min_tokens"] = max(least - self._before, 0)
        self.body = json.dumps(more).encode()
        transcript.tokens, transcript.textless = tokens, 0
        transcript.prompt = ids

    def rest(self) -> bytes:
        """What is missing of a stream that had come to its last token."""
        found = b""
        if not self._transcript.has_ended:
            last = {"index": 0, "text": "", "finish_reason": "length"}
            found += event(self._form({"choices": [last]}))
        if self._usage:
            found += event(self._named({"choices": [], "usage": self._used(0)}))
        return found + DONE

    def told(self, events: bytes) -> bytes:
        """Events of the second part, as the first would have gone on."""
        found = [event(self._form(data)) for data in data_of(events)]
        return b"".join(found) + (DONE if b"data: [DONE]" in events else b"")

    def _form(self, data: dict[str, Any]) -> dict[str, Any]:
        if "choices" not in data:
            return data
        if isinstance(data.get("usage"), dict):
            data["usage"] = self._used(data["usage"].get("completion_tokens", 0))
        for choice in data["choices"]:
            choice.pop("prompt_token_ids", None)
            if not self._transcript.tells_ids:
                choice["token_ids"] = None
            if self._is_chat:
                choice["delta"] = {"content": choice.pop("text", "")}
        return self._named(data)

    def _named(self, data: dict[str, Any]) -> dict[str, Any]:
        first = self._transcript.first
        return data | {key: first[key] for key in NAMES if key in first}

    def _used(self, more: int) -> dict[str, int]:
        completed = self._before + more
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": completed,
            "total_tokens": self._prompt + completed,
        }


def event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":")).encode()
