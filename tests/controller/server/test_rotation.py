"""Tokens and certificates that are replaced while all runs, as Kubernetes replaces files of a
Secret: a link to their folder is turned to another folder."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, current_thread
from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from controller.server.security import Listening
from placer.certificates import Credentials
from placer.channel import Channels, Settings
from placer.files.fresh import Fresh
from placer.v1 import fleet_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from tests.controller.server.tiny_server import Setting, a_world, refusal
from tests.controller.server.tiny_service import (
    AGENT,
    OPERATOR,
    WRONG,
    Authority,
    outcome,
    reached,
    serving,
)
from tests.controller.tiny_pool import asynchronous

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
log = logging.getLogger("tests")


class Secret:
    """A volume: each file is a link into a folder that ..data leads to."""

    def __init__(self, folder: Path, **files: bytes) -> None:
        folder.mkdir()
        self.folder, self.turn = folder, 0
        self.replace(**files)
        for name in files:
            (folder / name).symlink_to(Path("..data") / name)

    def replace(self, **files: bytes) -> None:
        self.turn += 1
        new = self.folder / f"..turn-{self.turn}"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
            (new / name).chmod(0o600)
        link = self.folder / "..data.new"
        link.symlink_to(new.name)
        link.replace(self.folder / "..data")

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def tls(authority: Authority) -> dict[str, bytes]:
    paths = {"ca": authority.ca, "certificate": authority.certificate, "key": authority.key}
    return {name: path.read_bytes() for name, path in paths.items()}


@asynchronous
async def test_an_old_token_is_refused_from_the_next_call_on(tmp_path: Path) -> None:
    theirs = Secret(tmp_path / "theirs", tokens=f"operator: [{OPERATOR}]".encode())
    mine = Secret(tmp_path / "mine", token=OPERATOR.encode())
    async with a_world(Setting(tokens=theirs / "tokens", token=OPERATOR)) as world:
        channels = Channels(world.address, Settings(token_file=mine / "token"), log)

        def status() -> str:
            """Of a client that lives as long as the controller, through a thread's channel."""
            try:
                stub = FleetServiceStub(channels.get())
                return str(stub.Status(fleet_pb2.StatusRequest(), timeout=5).ledger_id)
            except grpc.RpcError as error:
                return str(error.code())

        running = asyncio.get_running_loop()
        known = await running.run_in_executor(None, status)
        assert known == world.loop.ledger.records.id
        theirs.replace(tokens=f"operator: [{WRONG}]".encode())
        assert (await refusal(world.fleet.Status(fleet_pb2.StatusRequest())))[0] is UNAUTHENTICATED
        assert await running.run_in_executor(None, status) == str(UNAUTHENTICATED)
        mine.replace(token=WRONG.encode())
        assert await running.run_in_executor(None, status) == known
        channels.close()


@asynchronous
async def test_a_tokens_file_that_is_gone_or_broken_changes_nothing(tmp_path: Path) -> None:
    theirs = Secret(tmp_path / "theirs", tokens=f"operator: [{OPERATOR}]".encode())
    async with a_world(Setting(tokens=theirs / "tokens", token=OPERATOR)) as world:
        for files in ({"tokens": b"operator: ["}, {}):
            theirs.replace(**files)
            await world.fleet.Status(fleet_pb2.StatusRequest())
        theirs.replace(tokens=f"agent: [{AGENT}]".encode())
        assert (await refusal(world.fleet.Status(fleet_pb2.StatusRequest())))[0] is UNAUTHENTICATED


@pytest.mark.parametrize("mutual", [False, True])
@asynchronous
async def test_another_authority_is_trusted_and_shown_without_a_restart(
    tmp_path: Path, mutual: bool
) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    server = Secret(tmp_path / "server", **tls(first))
    client = Secret(tmp_path / "client", **tls(first))
    ca = server / "ca" if mutual else None
    listening = Listening("127.0.0.1:0", server / "certificate", server / "key", ca)
    own = (client / "certificate", client / "key") if mutual else (None, None)
    settings = Settings("", None, client / "ca", *own)
    async with serving(listening) as address:
        channels = Channels(address, settings, log)
        before = channels.get()
        assert channels.get() is before
        assert await reached(address, settings)
        server.replace(**tls(second))
        assert not await reached(address, Settings(ca=first.ca))
        client.replace(**tls(second))
        after = channels.get()
        assert after is not before
        assert await reached(address, settings)
        call = asyncio.to_thread(after.unary_unary("/t.T/Push"), b"x", timeout=5)
        assert await outcome(call) == b"xx"
        channels.close()


def test_broken_certificates_leave_the_channel_that_there_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "first")
    client = Secret(tmp_path / "client", **tls(authority))
    channels = Channels("127.0.0.1:1", Settings(ca=client / "ca"), log)
    before = channels.get()
    client.replace(ca=b"none")
    assert channels.get() is before
    client.replace(**tls(authority))
    assert channels.get() is not before
    channels.close()


def test_a_thread_that_is_late_with_a_change_closes_no_channel_that_others_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Secret(tmp_path / "client", ca=b"1")
    closed, late, others = list[Mock](), Event(), Event()

    def opens(*_: object) -> Mock:
        one = Mock()
        one.close = lambda: closed.append(one)
        return one

    class Late(Fresh[Any]):
        def get(self) -> Any:
            found = super().get()
            if current_thread().name.startswith("late"):
                late.set()
                others.wait(20)
            return found

    monkeypatch.setattr("placer.channel.open_channel", opens)
    monkeypatch.setattr("placer.channel.Fresh", Late)
    channels = Channels("127.0.0.1:1", Settings(ca=client / "ca"), log)
    with ThreadPoolExecutor(1, "late") as thread:
        client.replace(ca=b"2")
        asked = thread.submit(channels.get)
        late.wait(20)
        client.replace(ca=b"3")
        newest = channels.get()
        others.set()
        asked.result()
    assert channels.get() is newest
    assert newest not in closed


async def shown(listening: Listening, test: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """test: of the port of a server over TLS that says one line"""

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0, ssl=listening.tls())
    async with server:
        await test(server.sockets[0].getsockname()[1])


def client(ca: Path, own: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(own.certificate, own.key)
    return context


def heard(port: int, context: ssl.SSLContext, before: ssl.SSLSession | None = None) -> Any:
    """The session of a client that is let in; None of one that is turned away."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as plain:
        secured = context.wrap_socket(plain, server_hostname="localhost", session=before)
        with secured:
            return secured.session if secured.recv(5) == b"hello" else None
    return None


@asynchronous
async def test_over_http_too_another_authority_takes_the_place_of_the_one_before(
    tmp_path: Path,
) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    mine = Secret(tmp_path / "server", **tls(first))
    listening = Listening("127.0.0.1:0", mine / "certificate", mine / "key", mine / "ca")
    old, new = client(first.ca, first), client(first.ca, second)

    async def test(port: int) -> None:
        session = await asyncio.to_thread(heard, port, old)
        assert session
        assert not await asyncio.to_thread(heard, port, new)
        mine.replace(**tls(first) | {"ca": tls(second)["ca"]})
        assert not await asyncio.to_thread(heard, port, old)
        assert not await asyncio.to_thread(heard, port, old, session)
        assert await asyncio.to_thread(heard, port, new)

    await shown(listening, test)


@asynchronous
async def test_certificates_that_change_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    mine = Secret(tmp_path / "server", **tls(first))
    listening = Listening("127.0.0.1:0", mine / "certificate", mine / "key")
    old, new = client(first.ca, first), client(second.ca, first)
    reads = Credentials.read

    def changing(self: Credentials) -> Any:
        found = reads(self)
        if mine.turn == 2:
            mine.replace(certificate=b"half of on")
        return found

    async def test(port: int) -> None:
        monkeypatch.setattr(Credentials, "read", changing)
        mine.replace(**tls(second))
        assert await asyncio.to_thread(heard, port, old)
        mine.replace(**tls(second))
        assert await asyncio.to_thread(heard, port, new)

    await shown(listening, test)
