"""What a request asks for, as far as it matters to where it goes and whether it can go on there."""

from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic_core import from_json

from controller.router.scheduling.request import Request
from controller.router.scheduling.scheduler import BLOCK_TOKENS
from controller.router.wire.heads import RefusedError
from placer.arrays import IntArray

# Whose bodies are read.
ROUTES = frozenset({b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings"})
BYTES_PER_TOKEN = 4  # of text, where nobody counted
DEFAULT_MOST = 16  # tokens of /v1/completions, as OpenAI has it
UNBOUNDED = 1024  # tokens that are expected where none are stated
LARGEST = 2**31  # of what a request may state: JSON's integers have no end

# What may stand in a request for which going on elsewhere from its tokens gives the same as if
# nothing had happened. A grammar, a stop string or a penalty on what was generated would not know
# of the first part.
GOES_ON = frozenset(
    {"model", "prompt", "messages", "stream", "stream_options", "max_tokens",
     "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "user",
     "ignore_eos", "stop_token_ids", "min_tokens", "logit_bias", "skip_special_tokens",
     "spaces_between_special_tokens", "repetition_penalty", "return_token_ids", "priority",
     "add_special_tokens", "chat_template_kwargs", "add_generation_prompt", "service_tier",
     "metadata", "store"}
)  # fmt: skip
# And with these values only, which are as good as none.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None), "presence_penalty": (0, 0.0, None), "frequency_penalty": (0, 0.0, None),
    "echo": (False, None), "stop": (None, "", []), "logprobs": (None, False),
}  # fmt: skip


@dataclass(slots=True)
class ParsedBody:
    """tokens: ids of the prompt's beginning, if they are told; length: tokens of all of it; most:
    that may be generated; text: the prompt in pieces, where it is text; whole: what was sent, if
    it can go on elsewhere after some of it was generated"""

    tokens: IntArray | None = None
    length: int = 1
    most: int = UNBOUNDED
    text: list[str] = field(default_factory=list)
    whole: dict[str, Any] | None = None

    def request(self) -> Request:
        return Request(self.tokens, self.length, self.most, _blocks(self.tokens))


def read(body: bytes, scored: int) -> ParsedBody:
    """Raises RefusedError for what no engine would take."""
    try:
        data = from_json(body)
    except ValueError as error:
        told = " ".join(str(error).split())[:200]
        raise RefusedError(400, f"the body is no JSON ({told})") from error
    if not isinstance(data, dict):
        raise RefusedError(400, "the body is no JSON object: see OpenAI's API")
    parsed = ParsedBody()
    prompt = data.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (list, str)):
        parsed.length = sum(_length(one) for one in prompt)
        prompt = prompt[0]  # of several the first decides
    else:
        parsed.length = _length(prompt)
    if isinstance(prompt, list):
        parsed.tokens = _ids(prompt[:scored])
    elif isinstance(prompt, str):
        parsed.text = [prompt]
    elif "messages" in data:
        parsed.text = _texts(data["messages"])
        parsed.length = sum(len(one) for one in parsed.text) // BYTES_PER_TOKEN + 1
    elif "input" in data:  # of embeddings, which generate nothing
        parsed.length = _length(data["input"])
    most = data.get("max_completion_tokens") or data.get("max_tokens")
    if isinstance(most, int) and most > 0:
        parsed.most = min(most, LARGEST)
    elif "prompt" in data:
        parsed.most = DEFAULT_MOST
    if goes_on(data):
        parsed.whole = data
    return parsed


def goes_on(data: dict[str, Any]) -> bool:
    """Whether a stream that was cut can go on elsewhere: greedy or seeded, and nothing in it that
    depends on more than the tokens so far."""
    if data.get("stream") is not True:
        return False
    if data.get("temperature") != 0 and data.get("seed") is None:
        return False
    prompt = data.get("prompt")
    if isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int)):
        return False
    return GOES_ON.issuperset(data) or all(
        _is_one_of(value, NEUTRAL.get(key, ())) for key, value in data.items() if key not in GOES_ON
    )


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """For Python 0 and False are one; for logprobs they are not."""
    return any(type(value) is type(one) and value == one for one in allowed)


def _blocks(tokens: IntArray | None) -> tuple[int, ...]:
    """A hash of each block of the prompt's beginning and all before it, as engines cache them."""
    if tokens is None:
        return ()
    data, size = tokens.tobytes(), BLOCK_TOKENS * tokens.itemsize
    found, before = [], 0
    for end in range(size, len(data) + 1, size):
        before = hash((before, data[end - size : end]))
        found.append(before)
    return tuple(found)


def _ids(tokens: list[Any]) -> IntArray | None:
    """None if they are none: the engine says what is wrong with them."""
    try:
        found = array("Q", tokens)  # refuses what is negative, too large, or no integer
    except (TypeError, OverflowError):
        return None
    return np.frombuffer(found, dtype=np.int64) if found else None  # 2**63: no table has it anyway


def _length(prompt: Any) -> int:
    """Tokens, at least 1."""
    if isinstance(prompt, str):
        return len(prompt) // BYTES_PER_TOKEN + 1
    return max(len(prompt), 1) if isinstance(prompt, list) else 1


def _texts(messages: Any) -> list[str]:
    """Of a conversation, message by message."""
    found: list[str] = []
    for one in messages if isinstance(messages, list) else []:
        content = one.get("content") if isinstance(one, dict) else None
        if isinstance(content, str):
            found.append(content)
        elif isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            found += [part for part in parts if isinstance(part, str)]
    return found
