"""What of a request is known before it runs, and by whom."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.router.bodies import parsed_body, tokenizing
from controller.router.bodies.parsed_body import ParsedBody, goes_on, read
from controller.router.bodies.tokenizing import EngineTokenizer, LocalTokenizer, cut, fill
from controller.router.shared.settings import Limits, read_limits
from controller.router.wire.addresses import address
from controller.router.wire.server import Server
from controller.router.wire.upstream import LostError
from placer.clock import SystemClock
from placer.errors import FileError
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import (
    CHAT,
    COMPLETIONS,
    ask,
    completion,
    fronted,
    run,
    until,
    write,
)


def of(scored: int = 100, **body: Any) -> ParsedBody:
    return read(json.dumps(body).encode(), scored)


def ids(tokens: Any) -> list[int] | None:
    return None if tokens is None else tokens.tolist()


@pytest.mark.parametrize(
    ("body", "tokens", "length", "most"),
    [({"prompt": [1, 2, 3]}, [1, 2, 3], 3, 16),
     ({"prompt": [1] * 200, "max_tokens": 5}, [1] * 100, 200, 5),
     ({"prompt": [[1, 2], [3, 4, 5]]}, [1, 2], 5, 16),
     ({"prompt": "eight ch"}, None, 3, 16),
     ({"prompt": ["four", "fours"]}, None, 4, 16),
     ({"messages": [{"content": "x" * 40}]}, None, 11, 1024),
     ({"prompt": [1], "max_tokens": 10**400}, [1], 1, 2**31),  # which is no float
     ({"messages": [], "max_completion_tokens": 7, "max_tokens": 9}, None, 1, 7),
     ({"messages": [{"content": [{"type": "text", "text": "x" * 8}, {"type": "image"}]}, 3]},
      None, 3, 1024),
     ({"input": [1, 2]}, None, 2, 1024)],
)  # fmt: skip
def test_tokens_lengths_and_bounds_of_a_request(
    body: dict[str, Any], tokens: list[int] | None, length: int, most: int
) -> None:
    found = of(**body)
    assert (ids(found.tokens), found.length, found.most) == (tokens, length, most)


def test_prompts_that_begin_alike_have_blocks_in_common() -> None:
    """Blocks of 16 tokens, each with all before it: the second one differs in its last token."""
    first = of(prompt=list(range(40))).request().prefix
    second = of(prompt=[*range(31), 99, *range(32, 40)]).request().prefix
    assert (len(first), len(second)) == (2, 2)
    assert (first[0] == second[0], first[1] == second[1]) == (True, False)
    moved = of(prompt=[7] * 16 + list(range(16, 40))).request().prefix
    assert moved[1] != first[1]


@pytest.mark.parametrize(
    ("more", "is_so"),
    [({"temperature": 0}, True), ({"temperature": 0.0, "n": 1, "stop": None}, True),
     ({"seed": 0}, True), ({"temperature": 1}, False), ({}, False),
     ({"temperature": 0, "stream": False}, False), ({"temperature": 0, "n": 2}, False),
     ({"temperature": 0, "stop": ["a"]}, False), ({"temperature": 0, "echo": True}, False),
     ({"temperature": 0, "unheard_of": 1}, False), ({"temperature": 0, "logprobs": 0}, False),
     ({"temperature": 0, "prompt": [[1], [2]]}, False), ({"temperature": 0, "tools": []}, False)],
)  # fmt: skip
def test_what_may_go_on_elsewhere_is_greedy_or_seeded_and_depends_on_tokens_alone(
    more: dict[str, Any], is_so: bool
) -> None:
    assert goes_on({"prompt": [1], "stream": True, **more}) is is_so


@run
async def test_an_engine_is_asked_for_tokens() -> None:
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        router = here.front.router
        router.tokenizing = EngineTokenizer(router.endpoints, [], 2)
        await ask(here.port, COMPLETIONS, completion(prompt="some text"))
        assert ids(here.scheduler.requests[-1].tokens) == [7, 8]


@run
async def test_a_tokenizer_that_fails_costs_the_scores_alone() -> None:
    class Broken:
        def encode(self, asked: ParsedBody, done: Any) -> None:
            done()

        def close(self) -> None: ...

    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        here.front.router.tokenizing = Broken()
        answer = await ask(here.port, COMPLETIONS, completion(prompt="some text"))
        assert answer.status == 200
        assert here.scheduler.requests[-1].tokens is None


@run
async def test_an_engine_that_does_not_even_connect_is_waited_for_no_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never says a word of TLS
        where = address(f"https://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(LostError, match=r"does not answer in 0\.2 s"):
            await Server(where, SystemClock()).ask("POST", "/tokenize", tokenizing.ANSWER_S)


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = {"a": 0, "b": 1, "c": 2, "?": 3}
    data: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "?"},
    }  # fmt: skip
    return write(tmp_path / "tokenizer.json", json.dumps(data))


@run
async def test_a_conversation_s_turns_are_encoded_once(vocabulary: Path) -> None:
    encoded: list[str] = []
    engine = Engine()
    tokenizer = LocalTokenizer(vocabulary.parent, 100)
    whole = tokenizer._tokenizer

    class Counting:
        def encode(self, text: str, **more: Any) -> Any:
            encoded.append(text)
            return whole.encode(text, **more)

    tokenizer._tokenizer = Counting()
    async with engines(engine), fronted(engine) as here:
        here.front.router.tokenizing = tokenizer
        turns = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
        await ask(here.port, CHAT, {"messages": turns[:1], "max_tokens": 2})
        await ask(here.port, CHAT, {"messages": turns, "max_tokens": 2})
        await ask(here.port, CHAT, {"messages": turns, "max_tokens": 2})
        assert [ids(one.tokens) for one in here.scheduler.requests] == [
            [0, 1],
            [0, 1, 2],
            [0, 1, 2],
        ]
    assert encoded == ["a b", "c"]


@run
async def test_a_tokenizer_that_is_busy_is_not_waited_for(
    vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "WAITING", 0)
    engine = Engine()
    async with engines(engine), fronted(engine) as here:
        here.front.router.tokenizing = LocalTokenizer(vocabulary, 100)
        assert (await ask(here.port, COMPLETIONS, completion(prompt="a"))).status == 200
        assert here.scheduler.requests[-1].tokens is None


@run
async def test_a_client_that_leaves_while_its_text_is_encoded_is_forgotten(
    vocabulary: Path,
) -> None:
    engine = Engine()
    tokenizer = LocalTokenizer(vocabulary, 100)
    async with engines(engine), fronted(engine) as here:
        held = asyncio.Event()

        class Late:
            def encode(self, asked: ParsedBody, done: Any) -> None:
                asyncio.get_running_loop().create_task(self.later(done))

            async def later(self, done: Any) -> None:
                await held.wait()
                done()

            def close(self) -> None: ...

        here.front.router.tokenizing = Late()
        body = json.dumps(completion(prompt="a")).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
                     % (len(body), body))  # fmt: skip
        await until(lambda: here.front.router.active)
        writer.close()
        await until(lambda: not here.front.router.active)
        held.set()
        assert not engine.asked
    tokenizer.close()


def test_text_is_cut_to_what_is_scored() -> None:
    assert cut(["abc", "def", "g"], 5) == ["abc", "de"]
    found = ParsedBody()
    fill(found, [[1, 2], [3]], 2)
    assert (ids(found.tokens), found.length) == ([1, 2], 2)
    assert parsed_body.BYTES_PER_TOKEN * 2 == tokenizing.CHARACTERS


def test_no_tokenizer_is_told_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    with pytest.raises(FileError, match=r"nothing.json is no tokenizer"):
        LocalTokenizer(tmp_path / "nothing.json", 10)


def test_limits_are_read_and_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "front.yaml", "hold_s: 12\nrequests: 5\n")
    assert read_limits(path) == Limits(hold_s=12.0, requests=5)
    assert read_limits(None) == Limits()
    for text, why in (
        ("hold: 1", "hold"),
        ("hold_s: -1", "hold_s"),
        ("requests: many", "requests"),
    ):
        with pytest.raises(FileError, match=why):
            read_limits(write(path, text))


def test_a_request_without_tokens_has_no_blocks() -> None:
    assert ParsedBody(np.zeros(0, dtype=np.int64)).request().prefix == ()
    assert ParsedBody().request().prefix == ()
