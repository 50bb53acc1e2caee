"""The client of a controller's API, and its errors."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from placer.channel import Settings
from placer.errors import PlacerError
from placer.files.plans import LIMIT
from placer.probe import tls_fault
from placer.v1.fleet_pb2 import ExplainRequest
from placer.v1.fleet_pb2_grpc import FleetServiceStub, LedgerServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub

ADDRESS = "127.0.0.1:7077"
DEADLINE_S = 10.0
PROBE_S = 1.0  # to find out who said that something is not available
OPTIONS = [
    ("grpc.max_receive_message_length", LIMIT),
    ("grpc.keepalive_time_ms", 60_000),  # a watch notices that the controller's host is gone
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_TRANSPORT = re.compile(  # gRPC's own words; a controller's UNAVAILABLE has others
    "failed to connect|socket closed|connection (reset|refused|timed out)|errors resolving|goaway"
    "|broken pipe|endpoint closing|keepalive|recvmsg|sendmsg|unreachable|stream removed",
    re.IGNORECASE,
)
_NOT_OURS = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)
_DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_NO_TOKEN = "plugin failed with error: "  # gRPC's words before those of placer.channel


class ControllerError(PlacerError):
    """What a controller answers instead of what was asked for."""


class NobodyError(PlacerError):
    """No controller answers."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom failures are told to.

    whose:  before a controller's own words, where the reader cannot know whose they are
    nobody: what to look at if nobody answers
    denied: after the words of one that lets nobody in, what to look at
    """

    whose: str
    nobody: str
    denied: str


OPERATOR = Caller(
    whose="",
    nobody="does `placer serve` run, is --to right, and do both use TLS or neither?",
    denied="",
)


class Controller:
    """One that is there, as far as is known."""

    def __init__(self, address: str, channel: grpc.Channel, settings: Settings) -> None:
        self.address, self._channel, self._settings = address, channel, settings
        self.placement = PlacementServiceStub(channel)
        self.fleet = FleetServiceStub(channel)
        self.ledger = LedgerServiceStub(channel)
        self.profile = ProfileServiceStub(channel)

    @property
    def option(self) -> str:
        """What a command needs to reach the same one."""
        return "" if self.address == ADDRESS else f" --to {self.address}"

    def ask(self, method: Callable[..., Any], request: Any, deadline_s: float = DEADLINE_S) -> Any:
        try:
            return method(request, timeout=deadline_s)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def read(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        """What a stream brings."""
        try:
            yield from method(request)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def listen(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        """What a stream brings. Ends with an error only."""
        yield from self.read(method, request)
        raise ControllerError(f"the controller at {self.address} ended the stream: watch again")

    def newest(self, kind: str, id: str) -> Any:
        """The newest version of a record."""
        records = self.ask(self.ledger.Explain, ExplainRequest(id=id)).records
        found = [record for record in records if (record.kind, record.id) == (kind, id)]
        if not found:
            raise ControllerError(f"{id} is no {kind}: `placer history{self.option}` lists them")
        return found[-1]

    def _failure(self, error: grpc.RpcError) -> PlacerError:
        return failure(error, self.address, self._settings, OPERATOR, self._is_there)

    def _is_there(self) -> bool:
        """Its full disk is as UNAVAILABLE as a port where nobody listens."""
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout=PROBE_S)
        except grpc.FutureTimeoutError:
            return False
        finally:
            ready.cancel()
        return True


def failure(
    error: Any,
    address: str,
    settings: Settings,
    caller: Caller,
    is_there: Callable[[], bool] = lambda: False,
) -> PlacerError:
    """What a call's RpcError means, and what to do; placer's own errors say it themselves.

    is_there: whether somebody listens, asked where gRPC's words do not tell
    """
    if isinstance(error, PlacerError):
        return error
    code, details = error.code(), " ".join(str(error.details()).split())
    if _NO_TOKEN in details:
        return ControllerError(details.partition(_NO_TOKEN)[2])
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or (
        code is grpc.StatusCode.UNAVAILABLE and (_TRANSPORT.search(details) or not is_there())
    ):
        if why := tls_fault(address, settings):
            return ControllerError(f"the controller at {address} answers, but {why}")
        return NobodyError(f"no controller answers at {address}: {caller.nobody}")
    whose = caller.whose.format(address=address)
    if code in _NOT_OURS:
        return ControllerError(
            f"{address} answers {code.name} ({details}): is it a controller, and of this version?"
        )
    denied = caller.denied if code in _DENIED else ""
    return ControllerError(f"{whose}{details or code.name}{denied}")


def is_address(text: str) -> bool:
    return re.fullmatch(r"[^\s/]+:\d{1,5}", text) is not None
