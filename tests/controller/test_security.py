"""Who may call what, on real servers on this host."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.server.security import Listening, Role, Tokens
from placer.channel import Settings, open_aio_channel
from placer.errors import FileError
from tests.controller.tiny_service import (
    AGENT,
    ALL,
    NONE,
    OPERATOR,
    TOKENS,
    UNAUTHENTICATED,
    WHAT_AGENTS_MAY,
    WRONG,
    Authority,
    calls,
    calls_in_a_thread,
    during,
    outcome,
    write,
)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.yaml", TOKENS)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.mark.parametrize(
    ("token", "may"), [("", NONE), (WRONG, NONE), (AGENT, WHAT_AGENTS_MAY), (OPERATOR, ALL)]
)
@pytest.mark.parametrize("tls", [False, True])
def test_a_role_may_call_what_it_needs_and_no_more(
    tokens: Path, authority: Authority, token: str, may: dict[str, Any], tls: bool
) -> None:
    listening = (
        authority.listening(tokens=tokens) if tls else Listening("127.0.0.1:0", tokens=tokens)
    )
    settings = Settings(token=token, ca=authority.ca if tls else None)

    async def work(address: str) -> None:
        assert await calls(address, settings) == may
        assert await asyncio.to_thread(calls_in_a_thread, address, settings) == may

    during(listening, work)


def test_without_tokens_everyone_is_an_operator() -> None:
    async def work(address: str) -> None:
        assert await calls(address, Settings()) == ALL
        assert await calls(address, Settings(token=WRONG)) == ALL

    during(Listening("localhost:0"), work)


def test_refusals_say_what_to_do_and_never_the_token(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async def work(address: str) -> None:
        for token in ("", WRONG, AGENT):
            async with open_aio_channel(address, Settings(token=token)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/t.T/Approve")(b"x")
                said.append(str(caught.value.details()))

    during(Listening("127.0.0.1:0", tokens=tokens), work)
    remedy = "token: set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's"
    approve = "/t.T/Approve is for operators, and this is an agent's token: use an operator's"
    assert said == [f"no {remedy}", f"unknown {remedy}", approve]
    assert not any(secret in caplog.text for secret in (AGENT, OPERATOR, WRONG))


def test_a_client_that_sends_nothing_is_refused_without_waiting_for_it(tokens: Path) -> None:
    async def work(address: str) -> None:
        async with open_aio_channel(address, Settings()) as channel:
            call = channel.stream_stream("/t.T/Talk")(timeout=5)
            assert await call.code() == UNAUTHENTICATED

    during(Listening("127.0.0.1:0", tokens=tokens), work)


def test_other_schemes_are_not_tokens(tokens: Path) -> None:
    headers = [f"Basic {OPERATOR}", OPERATOR, "Bearer", f"Bearer {OPERATOR} x", ""]

    async def work(address: str) -> None:
        async with open_aio_channel(address, Settings()) as channel:
            push = channel.unary_unary("/t.T/Push")
            for header in headers:
                call = push(b"x", metadata=(("authorization", header),))
                assert await outcome(call) == UNAUTHENTICATED
            assert await push(b"x", metadata=(("authorization", f"bearer {AGENT}"),)) == b"xx"

    during(Listening("127.0.0.1:0", tokens=tokens), work)


def test_tokens_are_replaced_while_all_runs(tokens: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    write(mine, f"{OPERATOR}\n")

    async def work(address: str) -> None:
        async with open_aio_channel(address, Settings(token_file=mine)) as channel:
            push = channel.unary_unary("/t.T/Push")
            assert await push(b"x") == b"xx"
            write(tokens, f"operator: [{WRONG}]\n")
            assert await outcome(push(b"x")) == UNAUTHENTICATED
            write(mine, WRONG)
            assert await push(b"x") == b"xx"

    during(Listening("127.0.0.1:0", tokens=tokens), work)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"agent: [*{WRONG}]", "is not YAML"),
        (f"agent: ['{WRONG}", "is not YAML"),
        ("agent: [too-short-a-one]", "agent.0 is not as it should be"),
        (f"agent: ['{WRONG} {WRONG}']", "agent.0 is not as it should be"),
        (f"agent: {WRONG}", "agent is not as it should be"),
        (f"{WRONG}: agent", "it is not as it should be"),
        (WRONG, "it is not as it should be"),
        ("", "it is not as it should be"),
        ("agent: []", "holds no token"),
    ],
)
def test_a_broken_tokens_file_is_refused_and_not_quoted(
    tokens: Path, text: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = Tokens(tokens)
    write(tokens, text)
    with pytest.raises(FileError, match=where) as caught:
        Tokens(tokens)
    assert "secret" not in str(caught.value)
    assert "too-short" not in str(caught.value)
    assert caught.value.__cause__ is None  # which a traceback would quote
    for _ in range(2):  # and a controller that runs goes on with those that it knows
        assert known.role(AGENT) == Role.AGENT
    assert caplog.text.count("going on with what stood there before") == 1
    assert "secret" not in caplog.text
    write(tokens, f"agent: [{WRONG}]")
    assert (known.role(AGENT), known.role(WRONG)) == (None, Role.AGENT)
    tokens.unlink()
    assert known.role(WRONG) == Role.AGENT


def test_tokens_that_look_like_numbers_and_dates_are_tokens(tokens: Path) -> None:
    write(tokens, "agent: [1234567890123456]\noperator: [2024-99-99T10:10:10]\n")
    known = Tokens(tokens)
    assert known.role("1234567890123456") == Role.AGENT
    assert known.role("2024-99-99T10:10:10") == Role.OPERATOR


def test_a_token_in_both_lists_is_an_operators(tokens: Path) -> None:
    write(tokens, f"operator: [{AGENT}]\nagent: [{AGENT}]\n")
    assert Tokens(tokens).role(AGENT) == Role.OPERATOR


def test_tokens_that_everybody_can_read_are_warned_of(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Tokens(tokens)
    assert caplog.text == ""
    tokens.chmod(0o644)
    Tokens(tokens)
    assert "can be read by everybody on this host: chmod 600 it" in caplog.text
