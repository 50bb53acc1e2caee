"""A real server on this host, whose answers each test chooses."""

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np

from placer.agent.grpc_sink import GrpcSink
from placer.agent.recording import Recording
from placer.clock import SystemClock
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from placer.v1.placement_pb2_grpc import (
    PlacementServiceServicer,
    add_PlacementServiceServicer_to_server,
)
from placer.v1.profile_pb2_grpc import ProfileServiceServicer, add_ProfileServiceServicer_to_server
from placer.worker import Identity
from tests.agent.workers import a_recording, a_sequence, a_status, a_worker

PROMPT = [[[0], [1]], [[0], [2]], [[3], [1]]]  # 3 tokens, 2 layers, top-1
DECODED = [[[2], [2]]]
IDENTITY = Identity("tiny", "host-1")
GENEROUS_S = 60.0  # what has not happened by then never will
Plans = Iterator[tuple[int, bytes]]


class Controller(ProfileServiceServicer, PlacementServiceServicer, FleetServiceServicer):
    """Acknowledges every push, has no plan, and keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[Any] = []  # pushes and registrations
        self.watches: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.streams = 0  # of pushes
        self.send_affinity = False
        self.sampling: Any = None
        self.answer: Callable[[Any], Any] | None = None  # instead of the usual one
        self.plans: Callable[[Any], Plans] = lambda _: iter(())

    def Push(self, requests: Any, context: Any) -> Any:  # noqa: N802
        self.streams += 1
        self._see(context)
        for request in requests:
            usual = profile_pb2.PushResponse(
                sequence=request.sequence, send_affinity=self.send_affinity
            )
            if (answer := self._answer(request, usual)) is None:
                return
            yield answer

    def Watch(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._see(context)
        self.watches.append(request)
        for epoch, file in self.plans(request):
            yield placement_pb2.WatchResponse(epoch=epoch, file=file)
        while context.is_active():
            time.sleep(0.01)

    def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._see(context)
        return self._answer(request, fleet_pb2.RegisterResponse(sampling=self.sampling))

    def _see(self, context: Any) -> None:
        self.headers.append(dict(context.invocation_metadata()))

    def _answer(self, request: Any, usual: Any) -> Any:
        self.requests.append(request)
        return usual if self.answer is None else self.answer(request)


def serve(controller: Controller, address: str = "127.0.0.1:0") -> tuple[Any, str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    add_ProfileServiceServicer_to_server(controller, server)
    add_PlacementServiceServicer_to_server(controller, server)
    add_FleetServiceServicer_to_server(controller, server)
    port = server.add_insecure_port(address)
    server.start()
    return server, f"127.0.0.1:{port}"


def a_sink(address: str, rank: int = 0) -> GrpcSink:
    return GrpcSink(address, a_worker(rank), IDENTITY, None, SystemClock())


def until(true: Callable[[], Any]) -> Any:
    """What it says once it says something."""
    late = time.monotonic() + GENEROUS_S
    while not (found := true()):
        assert time.monotonic() < late, "it did not happen"
        time.sleep(0.01)
    return found


def array(data: bytes, *shape: int) -> list[Any]:
    """Numbers as the proto says: row-major little-endian uint32."""
    return np.frombuffer(data, dtype="<u4").reshape(shape).tolist()


def a_full_recording() -> Recording:
    sampled = [a_sequence(PROMPT, first_id=7), a_sequence(DECODED, first_id=70_000)]
    return a_recording(PROMPT, DECODED, sampled, window_s=2.5)


def watch_until_it_breaks(sink: GrpcSink) -> None:
    until(lambda: sink.plan(0))


CALLS: list[Callable[[GrpcSink], object]] = [
    lambda sink: sink.push(1, a_recording(prefill=PROMPT)),
    lambda sink: sink.report(a_status()),
    watch_until_it_breaks,
]
