"""The way to a controller, for the verbs that need one."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import grpc
import typer

from placer.channel import Settings, open_channel
from placer.cli.console import note
from placer.errors import PlacerError
from placer.files.plans import LIMIT
from placer.probe import tls_fault
from placer.v1.fleet_pb2 import ExplainRequest
from placer.v1.fleet_pb2_grpc import FleetServiceStub, LedgerServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub

ADDRESS = "127.0.0.1:7077"
DEADLINE_S, PLANNING_S = 10.0, 60.0
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

To = Annotated[
    str,
    typer.Option("--to", envvar="PLACER_CONTROLLER", help="The controller's host:port."),
]
Json = Annotated[bool, typer.Option("--json", help="One object on stdout.")]
Reason = Annotated[str, typer.Option(help="Why, for whoever reads the history.")]


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

    @property
    def option(self) -> str:
        """What a command needs to reach the same one."""
        return "" if self.address == ADDRESS else f" --to {self.address}"

    def ask(self, method: Callable[..., Any], request: Any, deadline_s: float = DEADLINE_S) -> Any:
        try:
            return method(request, timeout=deadline_s)
        except grpc.RpcError as error:
            raise self._failure(error) from error

    def listen(self, method: Callable[..., Any], request: Any) -> Iterator[Any]:
        """What a stream brings. Ends with an error only."""
        try:
            yield from method(request)
        except grpc.RpcError as error:
            raise self._failure(error) from error
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


@contextmanager
def controller(address: str) -> Iterator[Controller]:
    if not is_address(address):
        raise PlacerError(f"{address!r} is no address: write it as host:port")
    settings = Settings.of_environment()
    channel = open_channel(address, settings, OPTIONS)
    for fault in settings.credentials.faults(time.time()):
        note(fault)
    try:
        yield Controller(address, channel, settings)
    finally:
        channel.close()


def is_address(text: str) -> bool:
    return re.fullmatch(r"[^\s/]+:\d{1,5}", text) is not None


def as_dict(message: Any) -> dict[str, Any]:
    """For --json: numbers stay numbers, and a record's body is no text."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.type == field.TYPE_BYTES:
            continue
        if field.is_repeated:
            is_message = field.message_type is not None
            found[field.name] = [as_dict(one) if is_message else one for one in value]
        elif field.message_type is not None:
            found[field.name] = as_dict(value) if message.HasField(field.name) else None
        elif field.enum_type is not None:
            found[field.name] = words(field.enum_type, value)
        else:
            found[field.name] = value
    if message.DESCRIPTOR.name == "Record":
        found["body"] = json.loads(found["body"])
    return found


def words(kind: Any, value: int) -> str:
    """OPERATION_PHASE_ROLLED_BACK: "rolled back". kind: the enum's descriptor"""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).upper()
    name: str = kind.values_by_number[value].name
    return name.removeprefix(f"{prefix}_").replace("_", " ").lower()
