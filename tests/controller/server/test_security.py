"""Who may call what, on real servers on this host."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.server import strangers
from controller.server.callers import Names
from controller.server.security import Listening, Role, Tokens
from controller.server.strangers import SLOWEST_S, SPACING_S, Spacing
from placer.channel import Settings, open_aio_channel
from placer.clock import SystemClock
from placer.errors import FileError
from tests.controller.server.tiny_service import (
    AGENT,
    ALL,
    DENIED,
    NONE,
    OPERATOR,
    TOKENS,
    UNAUTHENTICATED,
    WHAT_AGENTS_MAY,
    WRONG,
    Authority,
    calls,
    calls_in_a_thread,
    outcome,
    serving,
    write,
)
from tests.controller.tiny_pool import asynchronous


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
@asynchronous
async def test_a_role_may_call_what_it_needs_and_no_more(
    tokens: Path, authority: Authority, token: str, may: dict[str, Any], tls: bool
) -> None:
    listening = (
        authority.listening(tokens=tokens) if tls else Listening("127.0.0.1:0", tokens=tokens)
    )
    settings = Settings(token=token, ca=authority.ca if tls else None)

    async with serving(listening) as address:
        assert await calls(address, settings) == may
        assert await asyncio.to_thread(calls_in_a_thread, address, settings) == may


@asynchronous
async def test_without_tokens_everyone_is_an_operator() -> None:
    async with serving(Listening("localhost:0")) as address:
        assert await calls(address, Settings()) == ALL
        assert await calls(address, Settings(token=WRONG)) == ALL


@asynchronous
async def test_refusals_say_what_to_do_and_never_the_token(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []

    async with serving(Listening("127.0.0.1:0", tokens=tokens)) as address:
        for token in ("", WRONG, AGENT):
            async with open_aio_channel(address, Settings(token=token)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/t.T/Approve")(b"x")
                said.append(str(caught.value.details()))

    remedy = "token: set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's"
    approve = "/t.T/Approve is for operators, and this is an agent's token: use an operator's"
    assert said == [f"no {remedy}", f"unknown {remedy}", approve]
    assert not any(secret in caplog.text for secret in (AGENT, OPERATOR, WRONG))


@asynchronous
async def test_a_client_that_sends_nothing_is_refused_without_waiting_for_it(tokens: Path) -> None:
    async with (
        serving(Listening("127.0.0.1:0", tokens=tokens)) as address,
        open_aio_channel(address, Settings()) as channel,
    ):
        call = channel.stream_stream("/t.T/Talk")(timeout=5)
        assert await call.code() == UNAUTHENTICATED


@asynchronous
async def test_other_schemes_are_not_tokens(tokens: Path) -> None:
    headers = [f"Basic {OPERATOR}", OPERATOR, "Bearer", f"Bearer {OPERATOR} x", ""]

    async with (
        serving(Listening("127.0.0.1:0", tokens=tokens)) as address,
        open_aio_channel(address, Settings()) as channel,
    ):
        push = channel.unary_unary("/t.T/Push")
        for header in headers:
            call = push(b"x", metadata=(("authorization", header),))
            assert await outcome(call) == UNAUTHENTICATED
        assert await push(b"x", metadata=(("authorization", f"bearer {AGENT}"),)) == b"xx"


@asynchronous
async def test_tokens_are_replaced_while_all_runs(tokens: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    write(mine, f"{OPERATOR}\n")

    async with (
        serving(Listening("127.0.0.1:0", tokens=tokens)) as address,
        open_aio_channel(address, Settings(token_file=mine)) as channel,
    ):
        push = channel.unary_unary("/t.T/Push")
        assert await push(b"x") == b"xx"
        write(tokens, f"operator: [{WRONG}]\n")
        assert await outcome(push(b"x")) == UNAUTHENTICATED
        write(mine, WRONG)
        assert await push(b"x") == b"xx"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f"agent: [*{WRONG}]", "is not YAML"),
        (f"agent: ['{WRONG}", "is not YAML"),
        ("agent: [too-short-a-one]", "agent.0 is not as it should be"),
        (f"agent: ['{WRONG} {WRONG}']", "agent.0 is not as it should be"),
        (f"agent: {WRONG}", "agent is not as it should be"),
        (f"agent: [{{token: short, pool: x}}, {WRONG}]", "agent.0 is not as it should be"),
        (f"agent: [{{token: {WRONG}, pool: ''}}]", "agent.0 is not as it should be"),
        (f"agent: [{{token: {WRONG}, rank: 1}}]", "agent.0 is not as it should be"),
        (f"agent: [{{pool: {WRONG}}}]", "agent.0 is not as it should be"),
        (f"operator: [{{token: {WRONG}}}]", "operator.0 is not as it should be"),
        (f"trace_reader: [{WRONG}]", "trace_reader.0 is not as it should be"),
        (f"trace_reader: [{{token: {WRONG}}}]", "trace_reader.0 is not as it should be"),
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


def test_a_token_has_the_names_of_all_its_entries(tokens: Path) -> None:
    write(
        tokens,
        f"agent: [{AGENT}, {{token: {WRONG}, pool: chat}}, {{token: {WRONG}, worker: '0'}}]\n"
        f"operator: [{OPERATOR}]",
    )
    known = Tokens(tokens)
    assert known.names(AGENT) == known.names(OPERATOR) == (Names(),)
    assert known.names(WRONG) == (Names("chat"), Names(worker="0"))
    assert (known.role(WRONG), known.names("unknown-secret-01")) == (Role.AGENT, ())


def test_a_token_in_both_lists_is_an_operators(tokens: Path) -> None:
    write(tokens, f"operator: [{AGENT}]\nagent: [{AGENT}]\n")
    assert Tokens(tokens).role(AGENT) == Role.OPERATOR


def test_a_trace_readers_token_has_a_name_and_no_agents_names(tokens: Path) -> None:
    """Nor does it widen those of an agent's token that it is, too."""
    write(
        tokens,
        f"agent: [{{token: {AGENT}, pool: chat}}]\n"
        f"trace_reader: [{{token: {AGENT}, name: alice}}, {{token: {WRONG}, name: bob}}]",
    )
    known = Tokens(tokens)
    assert known.role(AGENT) == Role.AGENT | Role.TRACE_READER
    assert (known.names(AGENT), known.reader(AGENT)) == ((Names("chat"),), "alice")
    assert (known.role(WRONG), known.names(WRONG)) == (Role.TRACE_READER, ())
    assert known.reader(WRONG) == "bob"


def test_tokens_that_everybody_can_read_are_warned_of(
    tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Tokens(tokens)
    assert caplog.text == ""
    tokens.chmod(0o644)
    Tokens(tokens)
    assert "can be read by everybody on this host: chmod 600 it" in caplog.text


def test_who_shows_no_known_token_waits_for_those_before_from_there() -> None:
    them = Spacing(SystemClock())
    delays = [them.delay_s("10.0.0.7", 100.0) for _ in range(5)]
    assert delays == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert them.delay_s("10.0.0.8", 100.0) == 0.0  # another's are not counted
    assert them.delay_s("10.0.0.7", 100.2) == pytest.approx(0.05)
    assert them.delay_s("10.0.0.7", 101.0) == 0.0  # who asks now and then is not slowed


def test_after_a_large_request_in_vain_the_next_waits_for_its_bytes() -> None:
    them = Spacing(SystemClock())
    assert them.delay_s("10.0.0.7", 100.0, 10_000_000) == 0.0
    assert them.delay_s("10.0.0.7", 100.0) == pytest.approx(1.05)


def test_a_large_request_waits_as_long_as_its_own_bytes_take() -> None:
    them = Spacing(SystemClock())
    assert them.delay_s("10.0.0.7", 100.0, 100_000_000) == 0.0
    assert them.delay_s("10.0.0.7", 100.0, 70_000_000) == 7.0  # of 10.05
    assert them.delay_s("10.0.0.7", 100.0) == SLOWEST_S  # an agent's, from the same host


def test_nobody_waits_longer_than_an_agent_does_for_its_answer() -> None:
    them = Spacing(SystemClock())
    delays = [them.delay_s("10.0.0.7", 100.0) for _ in range(3_000)]
    assert max(delays) == SLOWEST_S < 5.0
    assert delays[round(SLOWEST_S / SPACING_S) + 1 :] == [SLOWEST_S] * (3_000 - 61)
    assert them.delay_s("10.0.0.7", 100.0 + SLOWEST_S + SPACING_S) == 0.0  # it is forgotten soon


def test_more_addresses_than_are_told_apart_share_one() -> None:
    them = Spacing(SystemClock())
    for number in range(strangers.ADDRESSES):
        assert them.delay_s(f"10.0.{number // 256}.{number % 256}", 100.0) == 0.0
    delays = [them.delay_s(f"10.9.0.{number}", 100.0) for number in range(2)]
    assert delays == pytest.approx([0.0, SPACING_S])
    assert them.delay_s("10.9.0.9", 200.0) == 0.0
    assert len(them._free_s) == 1


@asynchronous
async def test_3000_wrong_tokens_are_told_in_a_few_lines(
    tokens: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(strangers, "PERIOD_S", 1.0)
    monkeypatch.setattr(strangers, "SLOWEST_S", 0.0)

    def told() -> int:
        return sum(int(line.split()[1].replace(",", "")) for line in caplog.messages[1:])

    async with serving(Listening("127.0.0.1:0", tokens=tokens)) as address:
        async with open_aio_channel(address, Settings(token=WRONG)) as channel:
            push = channel.unary_unary("/t.T/Push")
            for _ in range(30):
                codes = await asyncio.gather(*(outcome(push(b"x")) for _ in range(100)))
                assert set(codes) == {UNAUTHENTICATED}
        while told() < 2_999:
            await asyncio.sleep(0.01)

    first, second, *_ = caplog.messages
    assert first == "placer: a call from 127.0.0.1 shows no known token"
    assert second.startswith("placer: ")
    assert " more calls in 1 s show no known token, from 127.0.0.1 (" in second
    assert (told(), WRONG in caplog.text) == (2_999, False)


@asynchronous
async def test_right_tokens_do_not_wait_for_wrong_ones(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = 3_600.0
    monkeypatch.setattr(Spacing, "delay_s", lambda *_: never)

    async with (
        serving(Listening("127.0.0.1:0", tokens=tokens)) as address,
        open_aio_channel(address, Settings(token=WRONG)) as wrong,
        open_aio_channel(address, Settings(token=AGENT)) as right,
    ):
        push = wrong.unary_unary("/t.T/Push")
        waiting = [asyncio.create_task(outcome(push(b"x"))) for _ in range(9)]
        assert await right.unary_unary("/t.T/Push")(b"x") == b"xx"
        assert not any(call.done() for call in waiting)
        approve = right.unary_unary("/t.T/Approve")
        assert await outcome(approve(b"x")) == DENIED  # nor does a known one
