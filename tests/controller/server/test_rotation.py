"""Tokens and certificates that are replaced while all runs, as Kubernetes replaces files of a
Secret: a link to their folder is turned to another folder."""

import asyncio
import logging
from pathlib import Path

import grpc
import pytest

from controller.server.security import Listening
from placer.channel import Channels, Settings
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
        self.folder, self._turn = folder, 0
        self.replace(**files)
        for name in files:
            (folder / name).symlink_to(Path("..data") / name)

    def replace(self, **files: bytes) -> None:
        self._turn += 1
        new = self.folder / f"..turn-{self._turn}"
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
