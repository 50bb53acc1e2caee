"""Prompts that are text, as tokens: beside the event loop, and only as much as is scored.

Who cannot be tokenised goes where any request would: nothing but the scores is lost.
"""

import asyncio
import json
import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from controller.router.bodies.parsed_body import BYTES_PER_TOKEN, ParsedBody
from controller.router.pool.endpoints import Endpoints
from controller.router.wire.heads import JSON, Headers
from controller.router.wire.upstream import LostError
from placer.errors import FileError
from placer.extras import MissingError
from placer.files.vocabularies import FILE

WAITING = 64  # prompts that may wait for the thread: with more it would be what requests wait for
REMEMBERED = 4096  # pieces: messages of conversations, which come again with each turn
CHARACTERS = 2 * BYTES_PER_TOKEN  # for each token that is scored, at most
ANSWER_S = 0.2  # of an engine
Pieces = Sequence[str]

log = logging.getLogger("placer.front")


class Tokenizing(Protocol):
    def encode(self, parsed: ParsedBody, done: Callable[[], None]) -> None:
        """Fill in the tokens, if they can be had, and then say ``done``, on the event loop."""

    def close(self) -> None: ...


class LocalTokenizer:
    """Tokenizes by a model's tokenizer.json, on a thread of its own. scored: tokens, at most"""

    def __init__(self, path: Path, scored: int) -> None:
        """Raises FileError or MissingError."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingError("--tokenizer", "tokenizer", error.name) from error
        file = path / FILE if path.is_dir() else path
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:  # of no class of its own
            raise FileError(
                f"{file} is no tokenizer ({error}): give a model's tokenizer.json"
            ) from error
        self._scored, self._waiting = scored, 0
        self._known: OrderedDict[str, Sequence[int]] = OrderedDict()
        self._beside = ThreadPoolExecutor(1, "tokenizer")

    def encode(self, parsed: ParsedBody, done: Callable[[], None]) -> None:
        if self._waiting >= WAITING:
            done()
            return
        pieces = cut(parsed.text, self._scored * CHARACTERS)
        found = [self._known.get(one) for one in pieces]
        if all(one is not None for one in found):
            fill(parsed, [one for one in found if one is not None], self._scored)
            done()
            return
        self._waiting += 1
        loop = asyncio.get_running_loop()

        def told(future: Any) -> None:
            loop.call_soon_threadsafe(take, future)

        def take(future: Any) -> None:
            self._waiting -= 1
            if not future.exception():
                for piece, ids in zip(pieces, future.result(), strict=True):
                    self._known[piece] = ids
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
                fill(parsed, future.result(), self._scored)
            else:
                log.debug("placer: the tokenizer fails: %s", future.exception())
            done()

        self._beside.submit(self._encode, pieces).add_done_callback(told)

    def close(self) -> None:
        self._beside.shutdown(wait=False, cancel_futures=True)

    def _encode(self, pieces: Pieces) -> list[Sequence[int]]:
        """Without special tokens: they are in all prompts."""
        found: list[Sequence[int]] = []
        for piece in pieces:
            known = self._known.get(piece)
            if known is None:
                known = array("q", self._tokenizer.encode(piece, add_special_tokens=False).ids)
            found.append(known)
        return found


class EngineTokenizer:
    """Asks the /tokenize of whichever engine is there."""

    def __init__(self, endpoints: Endpoints, key: Headers, scored: int) -> None:
        self._endpoints, self._key, self._scored = endpoints, key, scored
        self._tasks: set[asyncio.Task[None]] = set()

    def encode(self, parsed: ParsedBody, done: Callable[[], None]) -> None:
        if len(self._tasks) >= WAITING:
            done()
            return
        task = asyncio.create_task(self._ask(parsed, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _ask(self, parsed: ParsedBody, done: Callable[[], None]) -> None:
        pieces = cut(parsed.text, self._scored * CHARACTERS)
        try:
            backend = next(iter(self._endpoints.backends.values()))
            info = backend.endpoint.info
            body = {"model": info.model if info else "", "prompt": "\n".join(pieces)}
            reply = await backend.endpoint.server.ask(
                "POST", "/tokenize", ANSWER_S, [*JSON, *self._key], json.dumps(body).encode()
            )
            fill(parsed, [array("q", json.loads(reply.body)["tokens"])], self._scored)
        except (LostError, StopIteration, ValueError, LookupError, TypeError, OverflowError) as why:
            log.debug("placer: no tokens: %s", why)
        done()


def cut(text: Pieces, most: int) -> list[str]:
    """The first so many characters, in the same pieces."""
    found = []
    for piece in text:
        if most <= 0:
            break
        found.append(piece[:most])
        most -= len(piece)
    return found


def fill(parsed: ParsedBody, ids: Sequence[Sequence[int]], scored: int) -> None:
    tokens = [token for piece in ids for token in piece][:scored]
    if tokens:
        parsed.tokens = np.array(tokens, dtype=np.int64)
        parsed.length = max(parsed.length, len(tokens))
