"""The client of a controller's API, and its errors."""

import re
from collections.abc import Callable, Iterator
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
_NO_TOKEN = "plugin failed with error: "  # gRPC's words before those of placer.channel


class ControllerError(PlacerError):
    """What a controller answers instead of what was asked for."""


class NobodyError(PlacerError):
    """No controller answers."""


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

    def _failure(self, error: Any) -> PlacerError:
        """Answers say themselves what to do."""
        code, details = error.code(), " ".join(str(error.details()).split())
        if _NO_TOKEN in details:
            return ControllerError(details.partition(_NO_TOKEN)[2])
        if code is grpc.StatusCode.DEADLINE_EXCEEDED or (
            code is grpc.StatusCode.UNAVAILABLE
            and (_TRANSPORT.search(details) or not self._is_there())
        ):
            if why := tls_fault(self.address, self._settings):
                return ControllerError(f"{self.address} answers, but {why}")
            return NobodyError(
                f"no controller answers at {self.address}: does `placer serve` run, is --to right,"
                " and do both use TLS or neither?"
            )
        if code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN):
            return ControllerError(
                f"{self.address} answers {code.name} ({details}): is it a controller, and of this"
                " version?"
            )
        return ControllerError(details or code.name)

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


def is_address(text: str) -> bool:
    return re.fullmatch(r"[^\s/]+:\d{1,5}", text) is not None
