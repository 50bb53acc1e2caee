"""What is wrong with certificates is said: by whoever has the files, and by whoever is refused."""

import asyncio
import os
import ssl
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from controller.pool_policies import PoolPolicies
from controller.server.security import Listening
from controller.server.serve import start
from placer import certificates
from placer.agent.streams import told
from placer.certificates import CertificateError, Credentials
from placer.channel import Settings, open_channel
from placer.errors import FileError
from placer.probe import tls_fault
from placer.v1 import fleet_pb2
from tests.controller.server.tiny_server import a_world
from tests.controller.server.tiny_service import Authority, reached, serving, write
from tests.controller.tiny_pool import asynchronous

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
OURS, LATE, EARLY, SOON = "ours", "late", "early", "soon"
VALID = {
    OURS: (NOW - DAY, NOW + 30 * DAY),
    LATE: (NOW - 9 * DAY, NOW - DAY),
    EARLY: (NOW + DAY, NOW + 9 * DAY),
    SOON: (NOW - DAY, NOW + 3 * DAY),
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


def signed(authority: Authority, name: str = OURS, *hosts: str) -> Credentials:
    """With the authority as whom it trusts."""
    begin, end = (at.replace(tzinfo=None) for at in VALID[name])
    issued = authority._authority.issue_cert(
        *(hosts or ("127.0.0.1", "localhost")), not_before=begin, not_after=end
    )
    folder = authority.ca.parent
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    write(certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    write(key, issued.private_key_pem.bytes())
    return Credentials(certificate, key, authority.ca)


def files(of: Credentials) -> tuple[Path, Path]:
    assert of.certificate is not None
    assert of.key is not None
    return of.certificate, of.key


def faults(of: Credentials) -> list[str]:
    return of.faults(NOW.timestamp())


def moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


def test_what_is_well_is_not_spoken_of(authority: Authority) -> None:
    assert faults(signed(authority)) == []
    assert faults(Credentials()) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (LATE, f"late.pem has expired on {moment(NOW - DAY)}: renew it"),
        (EARLY, f"early.pem is not valid before {moment(NOW + DAY)}: is this host's clock right?"),
        (SOON, f"soon.pem expires on {moment(NOW + 3 * DAY)}: renew it before"),
    ],
)
def test_a_certificate_is_valid_for_a_time(authority: Authority, name: str, fault: str) -> None:
    of = signed(authority, name)
    assert faults(of) == [f"{authority.ca.parent}/{fault}"]
    of_clients = Credentials(ca=of.certificate)  # one that signs itself
    assert faults(of_clients) == faults(of)


def test_of_several_authorities_one_that_is_valid_will_do(authority: Authority) -> None:
    several = authority.ca.parent / "several.pem"
    late, soon = (files(signed(authority, name))[0] for name in (LATE, SOON))
    write(several, late.read_bytes() + authority.ca.read_bytes() + soon.read_bytes())
    assert faults(Credentials(ca=several)) == []


def test_a_key_that_everybody_can_read_is_told(authority: Authority) -> None:
    of = signed(authority)
    files(of)[1].chmod(0o644)
    assert faults(of) == [f"{of.key} can be read by everybody on this host: chmod 600 it"]


def test_a_key_of_another_certificate_is_told_as_that(authority: Authority) -> None:
    of = replace(signed(authority), key=signed(authority, SOON).key)
    with pytest.raises(CertificateError, match=r"soon.key is not the key of .*ours.pem: give the"):
        of.read()


def test_validity_is_read_as_the_standard_writes_it(authority: Authority) -> None:
    """Years until 2049 with two digits, later ones with four."""
    for end in (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(2051, 2, 3, tzinfo=UTC)):
        issued = authority._authority.issue_cert("a.example", not_after=end.replace(tzinfo=None))
        pem = issued.cert_chain_pems[0].bytes()
        (_, until_s) = certificates._validity(ssl.PEM_cert_to_DER_cert(pem.decode()))
        assert until_s == end.timestamp()
        assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == end


@pytest.mark.parametrize("cut", [0, 1, 5, 40])
def test_what_cannot_be_read_as_a_certificate_is_an_error(cut: int, authority: Authority) -> None:
    certificate, _ = files(signed(authority))
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())[:cut]
    broken = write(authority.ca.parent / "broken.pem", ssl.DER_cert_to_PEM_cert(der))
    with pytest.raises((FileError, CertificateError), match=r"broken.pem"):
        faults(Credentials(ca=broken))
    with pytest.raises(FileError, match=r"broken.pem holds a certificate that cannot be read"):
        certificates._validities(broken)


@asynchronous
async def test_the_controller_says_in_its_status_what_is_wrong_and_what_is_no_longer(
    authority: Authority,
) -> None:
    of = signed(authority, SOON)
    certificate, key = files(of)

    async with a_world() as world:
        server, _ = await start(
            world.loop,
            world.offers,
            PoolPolicies(world.loop.config, world.loop.ledger),
            Listening("127.0.0.1:0", certificate, key),
        )
        await world.loop.tick()
        assert world.loop.conditions["certificates"].startswith(f"{certificate} expires on ")
        status = await world.fleet.Status(fleet_pb2.StatusRequest())
        assert list(status.conditions) == [f"certificates: {world.loop.conditions['certificates']}"]
        new_certificate, new_key = files(signed(authority))
        write(key, new_key.read_bytes())
        await world.loop.tick()
        assert "is not the key of" in world.loop.conditions["certificates"]
        write(certificate, new_certificate.read_bytes())
        await world.loop.tick()
        assert not world.loop.conditions
        await server.stop(grace=None)


def of_clients(authority: Authority, credentials: Credentials) -> Settings:
    return Settings(ca=authority.ca, certificate=credentials.certificate, key=credentials.key)


async def fault(listening: Listening, settings: Settings) -> str:
    """What a client whose call failed finds out."""
    async with serving(listening) as address:
        assert not await reached(address, settings)
        return await asyncio.to_thread(tls_fault, address, settings)


def a_server(of: Credentials, **more: Any) -> Listening:
    return Listening("127.0.0.1:0", of.certificate, of.key, **more)


@asynchronous
async def test_a_client_that_is_refused_finds_out_why(authority: Authority, tmp_path: Path) -> None:
    trusting = Settings(ca=authority.ca)
    other = signed(authority, OURS, "controller.example", "other.example")
    assert await fault(a_server(other), trusting) == (
        "its certificate is not for '127.0.0.1' but for controller.example, other.example: use such"
        " a name"
    )
    assert (await fault(a_server(signed(authority, LATE)), trusting)).startswith(
        "its certificate has expired, at "
    )
    assert (await fault(a_server(signed(authority, EARLY)), trusting)).startswith(
        "its certificate is not yet valid, at "
    )
    stranger = Authority(tmp_path, "stranger")
    assert await fault(a_server(signed(authority)), Settings(ca=stranger.ca)) == (
        f"its certificate is not signed by PLACER_TLS_CA ({stranger.ca}) (unable to get local "
        "issuer certificate): set PLACER_TLS_CA"
    )
    assert await fault(a_server(signed(authority)), Settings()) == (
        "it wants TLS: set PLACER_TLS_CA to its authority's certificate"
    )
    assert await fault(Listening("127.0.0.1:0"), trusting) == (
        "it has no TLS: unset PLACER_TLS_CA and PLACER_TLS_CERT, or start it with TLS"
    )


@asynchronous
async def test_the_command_line_says_it_on_one_line(authority: Authority) -> None:
    async with serving(a_server(signed(authority, LATE))) as address:
        ended = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "placer.cli.main", "status", "--to", address,
            env={**os.environ, "PLACER_TLS_CA": str(authority.ca)}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, told = await ended.communicate()
    (line,) = told.decode().splitlines()
    assert line.startswith(f"error: the controller at {address} answers, but its certificate has")


@asynchronous
async def test_a_client_without_the_certificate_that_is_asked_for_finds_out(
    authority: Authority, tmp_path: Path
) -> None:
    mutual = a_server(signed(authority), client_ca=authority.ca)
    assert await fault(mutual, Settings(ca=authority.ca)) == (
        "it wants a client's certificate: set PLACER_TLS_CERT and PLACER_TLS_KEY"
    )
    stranger = Authority(tmp_path, "stranger")
    shown = Settings(ca=authority.ca, certificate=stranger.certificate, key=stranger.key)
    assert await fault(mutual, shown) == (
        f"it does not take the certificate of PLACER_TLS_CERT ({stranger.certificate}): is it "
        "signed by the authority that the controller asks for?"
    )
    late = of_clients(authority, signed(authority, LATE))
    assert (await fault(mutual, late)).endswith(f"has expired on {moment(NOW - DAY)}: renew it")


@asynchronous
async def test_an_agent_that_is_refused_logs_why(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACER_TLS_CA", str(authority.ca))
    monkeypatch.delenv("PLACER_TLS_CERT", raising=False)

    def call(address: str) -> str:
        with open_channel(address, Settings(ca=authority.ca)) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/t.T/Push")(b"x", timeout=5)
            return str(told(address, refused.value))

    async with serving(a_server(signed(authority), client_ca=authority.ca)) as address:
        assert await asyncio.to_thread(call, address) == (
            f"the controller at {address} answers, but it wants a client's certificate: set "
            "PLACER_TLS_CERT and PLACER_TLS_KEY"
        )


@asynchronous
async def test_nothing_is_said_of_who_is_well_or_not_there(authority: Authority) -> None:
    mutual = a_server(signed(authority), client_ca=authority.ca)
    shown = of_clients(authority, signed(authority))
    async with serving(mutual) as address:
        assert await asyncio.to_thread(tls_fault, address, shown) == ""
    assert await asyncio.to_thread(tls_fault, address, shown) == ""
    async with serving(Listening("127.0.0.1:0")) as address:
        assert await asyncio.to_thread(tls_fault, address, Settings()) == ""
    assert tls_fault("nobody.invalid:1", Settings()) == ""
