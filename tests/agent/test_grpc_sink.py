"""Against a real server on this host, whose answers each test chooses."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from placer.agent import grpc_sink
from placer.agent.grpc_sink import GrpcSink
from placer.agent.recording import Recording
from placer.agent.status import Status, Worker
from placer.errors import PlacerError
from placer.files.plans import write_plan
from placer.v1 import agent_pb2 as pb
from placer.v1.agent_pb2_grpc import add_AgentServiceServicer_to_server
from tests.agent.builders import a_plan, a_recording, a_sequence, a_status, a_worker

PROMPT = [[[0], [1]], [[0], [2]], [[3], [1]]]  # 3 tokens, 2 layers, top-1
DECODED = [[[2], [2]]]


class Controller:
    """Acknowledges every push, has no plan, and keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.send_affinity = False
        self.answer: Callable[[Any], Any] | None = None  # instead of the usual one

    def push(self, request: Any, _: object) -> Any:
        usual = pb.PushResponse(sequence=request.sequence, send_affinity=self.send_affinity)
        return self._answer(request, usual)

    def get_plan(self, request: Any, _: object) -> Any:
        return self._answer(request, pb.GetPlanResponse())

    def report(self, request: Any, _: object) -> Any:
        return self._answer(request, pb.ReportResponse())

    def _answer(self, request: Any, usual: Any) -> Any:
        self.requests.append(request)
        return usual if self.answer is None else self.answer(request)


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def address(controller: Controller) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    methods = {"Push": controller.push, "GetPlan": controller.get_plan, "Report": controller.report}
    add_AgentServiceServicer_to_server(SimpleNamespace(**methods), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


@pytest.fixture
def sink(address: str) -> GrpcSink:
    return GrpcSink(address, a_worker(3))


def array(data: bytes, *shape: int) -> list[Any]:
    """Numbers as the proto says: row-major little-endian uint32."""
    return np.frombuffer(data, dtype="<u4").reshape(shape).tolist()


def a_full_recording() -> Recording:
    sampled = [a_sequence(PROMPT, first_id=7), a_sequence(DECODED, first_id=70_000)]
    return a_recording(PROMPT, DECODED, sampled, window_s=2.5)


def test_a_push_arrives_exactly(controller: Controller, sink: GrpcSink) -> None:
    sink.push(4, a_full_recording())
    (request,) = controller.requests
    assert (request.worker, request.sequence, request.window_s) == ("worker-3", 4, 2.5)
    prefill, decode = request.counts
    assert (prefill.phase, decode.phase) == (pb.PHASE_PREFILL, pb.PHASE_DECODE)
    for counts, tokens in ((prefill, 3), (decode, 1)):
        assert (counts.layers, counts.experts, counts.top_k) == (2, 4, 1)
        assert (counts.tokens, counts.sequences) == (tokens, 1)
    assert array(prefill.load, 2, 4) == [[2, 0, 0, 1], [0, 2, 1, 0]]
    assert array(decode.load, 2, 4) == [[0, 0, 1, 0], [0, 0, 1, 0]]


def test_counts_of_any_size_arrive_exactly(controller: Controller, sink: GrpcSink) -> None:
    recording = a_recording(prefill=PROMPT)
    recording.counts.load[0] = [[2**24 - 1, 256, 0, 1], [2**31, 255, 65_536, 2**32 - 1]]
    recording.counts.tokens[0] = 2**24 + 256
    sink.push(1, recording)
    (counts,) = controller.requests[0].counts
    assert array(counts.load, 2, 4) == recording.counts.load[0].tolist()


def test_affinity_and_traces_go_only_after_the_controller_asked(
    controller: Controller, sink: GrpcSink
) -> None:
    for sequence, send_affinity in enumerate((False, True, False, False), 1):
        controller.send_affinity = send_affinity
        sink.push(sequence, a_full_recording())
    has = [
        [bool(counts.transitions and counts.coactivation) for counts in request.counts]
        + [request.HasField("trace")]
        for request in controller.requests
    ]
    assert has == [[False] * 3, [False] * 3, [True] * 3, [False] * 3]
    bare = controller.requests[0].counts[0]
    assert (bare.transitions, bare.coactivation) == (b"", b"")


def test_affinity_and_traces_arrive_exactly(controller: Controller, sink: GrpcSink) -> None:
    controller.send_affinity = True
    sink.push(1, a_full_recording())
    top_2 = [[[0, 1], [2, 3]], [[0, 2], [3, 2]]]  # 2 tokens
    sampled = [a_sequence(top_2, first_id=7), a_sequence(top_2[:1], first_id=70_000)]
    sink.push(2, a_recording(prefill=top_2, sampled=sampled))
    request = controller.requests[1]
    (counts,) = request.counts
    first = [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert array(counts.transitions, 1, 4, 4) == [first]
    assert array(counts.coactivation, 2, 4, 4) == [
        [[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0]],
    ]
    trace = request.trace
    assert (trace.layers, trace.top_k, list(trace.seq_lens)) == (2, 2, [2, 1])
    ids = np.frombuffer(trace.expert_ids, dtype="<u2").reshape(3, 2, 2)
    assert ids.tolist() == [*top_2, top_2[0]]
    assert array(trace.token_ids, 3) == [7, 8, 70_000]


def test_asked_for_traces_it_goes_without_where_no_request_was_sampled(
    controller: Controller, sink: GrpcSink
) -> None:
    controller.send_affinity = True
    sink.push(1, a_recording(prefill=PROMPT))
    sink.push(2, a_recording(prefill=PROMPT))
    assert not controller.requests[1].HasField("trace")
    assert controller.requests[1].counts[0].transitions


def test_a_status_arrives_field_by_field(controller: Controller, sink: GrpcSink) -> None:
    worker = Worker("worker-3", "a model", 58, 256, 8, 288, 3, 16, can_apply=True, records=False)
    status = Status(worker, 7, "sha256:ab", 8, "why not", 2**40, 9, "what keeps it")
    sink.report(status)
    (request,) = controller.requests
    for of, message in ((worker, request.worker), (status, request)):
        names = [field.name for field in message.DESCRIPTOR.fields]
        assert sorted(names) == sorted(type(of).__slots__)
        for name in set(names) - {"worker"}:
            assert getattr(message, name) == getattr(of, name), name


def test_a_plan_of_a_later_epoch_is_taken_up(
    controller: Controller, sink: GrpcSink, tmp_path: Any
) -> None:
    write_plan(tmp_path / "p.json", a_plan())
    plan = (tmp_path / "p.json").read_bytes()
    controller.answer = lambda _: pb.GetPlanResponse(epoch=5, plan=plan)
    found = sink.plan(4)
    assert found is not None
    epoch, answer = found
    assert epoch == 5
    assert not isinstance(answer, PlacerError)
    assert answer.placement.digest == a_plan().placement.digest
    (request,) = controller.requests
    assert (request.worker, request.after_epoch) == ("worker-3", 4)
    for known in (5, 6):
        assert sink.plan(known) is None


def test_where_there_is_no_plan_there_is_none(sink: GrpcSink) -> None:
    assert sink.plan(0) is None


@pytest.mark.parametrize(
    "plan",
    [
        b"",
        b"\xff\xfe\x00garbage",
        b"not JSON",
        b"[" * 100_000,
        b'{"format": "placer.plan", "version": 1}',
        b'{"format": "placer.plan", "version": 1, "placement": {"gpus": 0, '
        b'"physical_to_logical": [[0]]}}',
    ],
    ids=["nothing", "no text", "no JSON", "deep", "no map", "no GPUs"],
)
def test_a_plan_that_is_none_is_an_epoch_with_its_error(
    controller: Controller, sink: GrpcSink, plan: bytes
) -> None:
    controller.answer = lambda _: pb.GetPlanResponse(epoch=5, plan=plan)
    found = sink.plan(0)
    assert found is not None
    epoch, error = found
    assert epoch == 5
    assert isinstance(error, PlacerError)
    assert "plan 5 of 127.0.0.1:" in str(error)
    assert "\n" not in str(error)


CALLS: list[Callable[[GrpcSink], object]] = [
    lambda sink: sink.push(1, a_recording(prefill=PROMPT)),
    lambda sink: sink.plan(0),
    lambda sink: sink.report(a_status()),
]
every_call = pytest.mark.parametrize("call", CALLS, ids=["push", "plan", "report"])


@every_call
def test_an_address_where_nobody_listens_is_named(call: Callable[[GrpcSink], object]) -> None:
    with pytest.raises(PlacerError, match=r"127\.0\.0\.1:1 does not answer \(UNAVAILABLE\)"):
        call(GrpcSink("127.0.0.1:1", a_worker()))


@every_call
def test_a_controller_that_is_too_slow_is_an_error_and_no_wait(
    controller: Controller,
    sink: GrpcSink,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[GrpcSink], object],
) -> None:
    monkeypatch.setattr(grpc_sink, "DEADLINE_S", 0.2)
    asked_enough = threading.Event()
    controller.answer = lambda _: asked_enough.wait()
    try:
        with pytest.raises(PlacerError, match=r"does not answer \(DEADLINE_EXCEEDED\)"):
            call(sink)
    finally:
        asked_enough.set()


@every_call
def test_a_controller_that_fails_is_an_error(
    controller: Controller, sink: GrpcSink, call: Callable[[GrpcSink], object]
) -> None:
    controller.answer = lambda _: 1 / 0
    with pytest.raises(PlacerError, match="answers UNKNOWN"):
        call(sink)
    controller.answer = None
    call(sink)


@every_call
def test_a_server_of_something_else_is_an_error(call: Callable[[GrpcSink], object]) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(PlacerError, match="answers UNIMPLEMENTED"):
        call(GrpcSink(f"127.0.0.1:{port}", a_worker()))
    server.stop(grace=None).wait()


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_an_acknowledgement_of_another_push_is_an_error(
    controller: Controller, sink: GrpcSink, sequence: int
) -> None:
    controller.answer = lambda _: pb.PushResponse(sequence=sequence, send_affinity=True)
    with pytest.raises(PlacerError, match=rf"acknowledged push {sequence} and not 2"):
        sink.push(2, a_full_recording())
    controller.answer = None
    sink.push(2, a_full_recording())
    assert not controller.requests[1].HasField("trace")  # it asked in an answer to something else


def test_a_plan_larger_than_any_plan_is_an_error(
    controller: Controller, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = [(name, min(value, 2**16)) for name, value in grpc_sink.OPTIONS]
    assert ("grpc.max_receive_message_length", 2**16) in smaller  # in place of 256 MiB
    monkeypatch.setattr(grpc_sink, "OPTIONS", smaller)
    sink = GrpcSink(address, a_worker())
    controller.answer = lambda _: pb.GetPlanResponse(epoch=5, plan=b" " * 2**16)
    with pytest.raises(PlacerError, match="RESOURCE_EXHAUSTED"):
        sink.plan(0)
    controller.answer = None
    assert sink.plan(0) is None
