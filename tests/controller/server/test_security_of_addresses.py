"""Who may listen where, and who gets through TLS to real servers on this host."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from controller.server.security import Listening, SecurityError
from placer.channel import ChannelError, Settings, open_aio_channel, open_channel
from placer.errors import PlacerError
from tests.controller.server.tiny_service import (
    AGENT,
    TOKENS,
    Authority,
    reached,
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


@asynchronous
async def test_only_the_controllers_own_authority_is_trusted(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")

    async with serving(authority.listening()) as address:
        assert await reached(address, Settings(ca=authority.ca))
        assert not await reached(address, Settings(ca=other.ca))
        assert not await reached(address, Settings())


@asynchronous
async def test_mutual_tls_wants_a_certificate_of_the_clients_authority(
    authority: Authority, tmp_path: Path
) -> None:
    clients, other = Authority(tmp_path, "clients"), Authority(tmp_path, "other")
    settings = Settings(ca=authority.ca)

    async with serving(authority.listening(client_ca=clients.ca)) as address:
        for who, welcome in ((clients, True), (other, False), (authority, False)):
            shown = replace(settings, certificate=who.certificate, key=who.key)
            assert await reached(address, shown) == welcome
        assert not await reached(address, settings)


@asynchronous
async def test_a_new_certificate_is_served_to_new_connections(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Authority(tmp_path, "other")
    before, after = Settings(ca=authority.ca), Settings(ca=other.ca)

    async with (
        serving(authority.listening()) as address,
        open_aio_channel(address, before) as channel,
    ):
        push = channel.unary_unary("/t.T/Push")
        assert await push(b"x") == b"xx"
        write(authority.certificate, other.certificate.read_bytes())
        assert await reached(address, before)  # with the old key it is of no use
        assert await reached(address, before)
        assert caplog.text.count("going on with what stood there before") == 1
        write(authority.key, other.key.read_bytes())
        assert await reached(address, after)
        assert not await reached(address, before)
        assert await push(b"x") == b"xx"

    assert "PRIVATE KEY" not in caplog.text


def test_a_certificate_that_is_none_is_refused_at_the_start(authority: Authority) -> None:
    async def start(listening: Listening) -> None:
        async with serving(listening):
            pass

    listening = authority.listening(client_ca=authority.key)
    with pytest.raises(PlacerError, match=r"ours.key holds no certificate: give the authority's"):
        asyncio.run(start(listening))
    write(authority.key, "nothing")
    with pytest.raises(PlacerError, match="are no certificate and its key: give both in PEM"):
        asyncio.run(start(authority.listening()))
    authority.key.unlink()
    with pytest.raises(PlacerError, match=r"cannot read .*ours.key: No such file"):
        asyncio.run(start(authority.listening()))


FILE = Path("file")
LOOPBACK = ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"]
ELSEWHERE = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "controller.example:1", "127.0.0.1.example:1"]


@pytest.mark.parametrize("address", LOOPBACK)
def test_this_host_needs_no_tls(address: str) -> None:
    Listening(address).check()
    Settings(token=AGENT).check(address)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_elsewhere_neither_side_goes_without_tls_unless_told_so(address: str) -> None:
    with pytest.raises(SecurityError) as caught:
        Listening(address, tokens=FILE).check()
    assert str(caught.value) == (
        f"{address} can be reached from other hosts, and all could be read on the way"
        ": give a certificate and its key, listen on 127.0.0.1, or say --insecure"
    )
    Listening(address, insecure=True).check()
    with pytest.raises(ChannelError) as told:
        open_channel(address, Settings(token=AGENT))
    assert str(told.value) == (
        f"a token for {address} could be read on the way: set PLACER_TLS_CA to the controller's"
        " authority, or PLACER_INSECURE=1"
    )
    Settings(token=AGENT, insecure=True).check(address)
    Settings(token=AGENT, ca=FILE).check(address)
    Settings().check(address)


@pytest.mark.parametrize("address", ELSEWHERE)
def test_elsewhere_somebody_must_be_kept_out(address: str) -> None:
    with pytest.raises(
        SecurityError, match="everybody could move experts: give tokens or a client"
    ):
        Listening(address, FILE, FILE).check()
    Listening(address, FILE, FILE, tokens=FILE).check()
    Listening(address, FILE, FILE, client_ca=FILE).check()
    Listening(address, FILE, FILE, insecure=True).check()


@pytest.mark.parametrize("address", ["", "localhost", ":1", "::1:5000", "a b:1", "x:65536", "x:-1"])
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(SecurityError, match="write it as host:port"):
        Listening(address, insecure=True).check()


def test_halves_of_settings_are_refused() -> None:
    with pytest.raises(SecurityError, match="a certificate needs its key: give both"):
        Listening("localhost:1", certificate=FILE).check()
    with pytest.raises(SecurityError, match="over TLS only: give the server's certificate"):
        Listening("localhost:1", client_ca=FILE).check()
    with pytest.raises(ChannelError, match="set PLACER_TLS_CERT and PLACER_TLS_KEY"):
        Settings(certificate=FILE).check("localhost:1")
    with pytest.raises(ChannelError, match="both set: unset one of them"):
        Settings(token=AGENT, token_file=FILE).check("localhost:1")


def test_an_address_that_cannot_be_listened_on_is_told(tokens: Path) -> None:
    async def start() -> None:
        async with serving(Listening("192.0.2.1:0", tokens=tokens, insecure=True)):
            pass

    with pytest.raises(SecurityError, match=r"cannot listen on 192.0.2.1:0: is the port taken"):
        asyncio.run(start())
