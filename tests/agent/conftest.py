"""A controller, and a worker's way to it; a worker whose clock is moved by hand."""

from collections.abc import Iterator

import pytest

from placer.agent import streams
from placer.agent.grpc_sink import GrpcSink
from tests.agent.controllers import Controller, a_sink, serve
from tests.agent.tiny_reporter import Clock, World


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this host's environment is; and with shorter pauses."""
    for name in ("TOKEN", "TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY", "POOL", "ENGINE"):
        monkeypatch.delenv(f"PLACER_{name}", raising=False)
    monkeypatch.setattr(streams, "POLL_S", 0.05)


@pytest.fixture
def controller() -> Controller:
    return Controller()  # type: ignore[abstract]


@pytest.fixture
def address(controller: Controller) -> Iterator[str]:
    server, address = serve(controller)
    yield address
    server.stop(grace=None).wait()


@pytest.fixture
def sink(address: str) -> Iterator[GrpcSink]:
    with_it = a_sink(address, 3)
    yield with_it
    with_it.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def world(clock: Clock) -> World:
    return World(clock)
