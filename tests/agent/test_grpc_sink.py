"""Against a real server on this host, whose answers each test chooses."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

from placer import model
from placer.agent import grpc_sink, plugin, streams
from placer.agent.grpc_sink import GrpcSink
from placer.agent.recording import Recording
from placer.agent.status import Identity, Status, Worker
from placer.errors import PlacerError
from placer.files.plans import write_plan
from placer.files.specs import shape_of
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from placer.v1.placement_pb2_grpc import (
    PlacementServiceServicer,
    add_PlacementServiceServicer_to_server,
)
from placer.v1.profile_pb2_grpc import ProfileServiceServicer, add_ProfileServiceServicer_to_server
from tests.agent.builders import a_plan, a_recording, a_sequence, a_status, a_worker

PROMPT = [[[0], [1]], [[0], [2]], [[3], [1]]]  # 3 tokens, 2 layers, top-1
DECODED = [[[2], [2]]]
IDENTITY = Identity("tiny", "host-1")
GENEROUS_S = 60.0  # what has not happened by then never will
Plans = Iterator[tuple[int, bytes]]


class Controller(ProfileServiceServicer, PlacementServiceServicer, FleetServiceServicer):  # type: ignore[misc]
    """Acknowledges every push, has no plan, and keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[Any] = []  # pushes and registrations
        self.watches: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.streams = 0  # of pushes
        self.send_affinity = False
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
        return self._answer(request, fleet_pb2.RegisterResponse())

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


@pytest.fixture(autouse=True)
def _plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this host's environment is; and with shorter pauses."""
    for name in ("TOKEN", "TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY", "POOL", "ENGINE"):
        monkeypatch.delenv(f"PLACER_{name}", raising=False)
    monkeypatch.setattr(streams, "POLL_S", 0.05)


@pytest.fixture
def controller() -> Controller:
    return Controller()


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


def a_sink(address: str, rank: int = 0) -> GrpcSink:
    return GrpcSink(address, a_worker(rank), IDENTITY, None)


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


def test_a_push_arrives_exactly(controller: Controller, sink: GrpcSink) -> None:
    sink.push(4, a_full_recording())
    (request,) = controller.requests
    assert (request.sequence, request.window_s) == (4, 2.5)
    assert (request.id.pool, request.id.engine, request.id.worker) == ("tiny", "host-1", "worker-3")
    prefill, decode = request.counts
    assert (prefill.phase, decode.phase) == (profile_pb2.PHASE_PREFILL, profile_pb2.PHASE_DECODE)
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


def test_all_pushes_go_through_one_stream(controller: Controller, sink: GrpcSink) -> None:
    for sequence in (1, 2, 5):
        sink.push(sequence, a_full_recording())
    assert [request.sequence for request in controller.requests] == [1, 2, 5]
    assert controller.streams == 1


def test_a_stream_that_breaks_before_the_answer_is_opened_again_for_the_same_push(
    controller: Controller, sink: GrpcSink
) -> None:
    sink.push(1, a_full_recording())
    controller.answer = lambda _: 1 / 0
    with pytest.raises(PlacerError, match="answers UNKNOWN"):
        sink.push(2, a_full_recording())
    controller.answer = None
    sink.push(2, a_full_recording())
    sink.push(3, a_full_recording())
    assert [request.sequence for request in controller.requests] == [1, 2, 2, 3]
    assert controller.streams == 2


def test_a_controller_that_ends_the_stream_instead_of_answering_is_an_error(
    controller: Controller, sink: GrpcSink
) -> None:
    controller.answer = lambda _: None
    with pytest.raises(PlacerError, match="ended the stream of pushes"):
        sink.push(1, a_full_recording())
    controller.answer = None
    sink.push(1, a_full_recording())
    assert controller.streams == 2


def test_a_controller_that_started_again_gets_the_next_push_without_an_error() -> None:
    first = Controller()
    server, address = serve(first)
    sink = a_sink(address)
    sink.push(1, a_full_recording())
    server.stop(grace=None).wait()
    assert sink._pushes is not None
    pushes = sink._pushes
    until(lambda: not pushes.is_open)
    second = Controller()
    server, _ = serve(second, address)
    sink.push(2, a_full_recording())
    assert [[one.sequence for one in each.requests] for each in (first, second)] == [[1], [2]]
    sink.close()
    server.stop(grace=None).wait()


def test_an_answer_that_is_too_late_is_not_taken_for_the_next_pushs(
    controller: Controller, sink: GrpcSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.push(1, a_full_recording())  # so that the connection stands
    waited = threading.Event()

    def late(request: Any) -> Any:
        waited.wait(GENEROUS_S)
        return profile_pb2.PushResponse(sequence=request.sequence)

    controller.answer = late
    with monkeypatch.context() as patch:
        patch.setattr(grpc_sink, "DEADLINE_S", 0.2)
        with pytest.raises(PlacerError, match=r"does not answer \(DEADLINE_EXCEEDED\)"):
            sink.push(2, a_full_recording())
    controller.answer = None
    waited.set()
    sink.push(2, a_full_recording())
    sink.push(3, a_full_recording())
    assert [request.sequence for request in controller.requests] == [1, 2, 2, 3]


def test_a_refused_push_is_over_and_each_reason_is_logged_once(
    controller: Controller, sink: GrpcSink, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = ["", "it is of\nanother model", "it is of\nanother model", "", "it is too old"]
    controller.answer = lambda request: profile_pb2.PushResponse(
        sequence=request.sequence, refused=reasons[request.sequence - 1]
    )
    with caplog.at_level(logging.WARNING, logger="vllm.placer"):
        for sequence in range(1, 6):
            sink.push(sequence, a_full_recording())
    assert controller.streams == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"placer: the controller at {sink.address} refuses push 2, which is lost: "
        "it is of another model",
        f"placer: the controller at {sink.address} refuses push 5, which is lost: it is too old",
    ]


def test_a_registration_says_everything(controller: Controller, address: str) -> None:
    worker = Worker("worker-3", "a model", 58, 256, 8, 288, 3, 16, can_apply=True, records=False)
    status = Status(worker, 7, "sha256:ab", 8, "why not", 2**40, 9, "what keeps it")
    shape = model.preset("deepseek-v3")
    sink = GrpcSink(address, worker, Identity("a pool", "an engine", "an actor"), shape)
    sink.report(status)
    sink.close()
    (request,) = controller.requests
    own = {"id", "shape", "actor"}
    for of, message, rest in ((worker, request.worker, set()), (status, request, own)):
        names = {field.name for field in message.DESCRIPTOR.fields} - rest
        assert names == set(type(of).__slots__)
        for name in names - {"worker"}:
            assert getattr(message, name) == getattr(of, name), name
    assert (request.id.pool, request.id.engine, request.id.worker) == (
        "a pool",
        "an engine",
        "worker-3",
    )
    assert request.actor == "an actor"
    assert shape_of(json.loads(request.shape)) == shape


def test_of_a_model_whose_sizes_are_not_known_none_are_said(
    controller: Controller, sink: GrpcSink
) -> None:
    sink.report(a_status())
    assert controller.requests[0].shape == ""


def test_a_later_life_of_a_worker_has_a_larger_incarnation(
    controller: Controller, address: str
) -> None:
    for _ in range(2):
        sink = a_sink(address)
        sink.report(a_status())
        sink.push(1, a_full_recording())
        sink.close()
    first, same, second, _ = [request.id.incarnation for request in controller.requests]
    assert 0 < first == same < second


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ("DeepSeek-V3", "this-host")),
        ({"PLACER_POOL": "chat", "PLACER_ENGINE": " blue "}, ("chat", "blue")),
        ({"PLACER_POOL": " ", "PLACER_ENGINE": ""}, ("DeepSeek-V3", "this-host")),
    ],
    ids=["neither", "both", "empty"],
)
def test_the_environment_names_pool_and_engine_or_else_model_and_host(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[str, str]
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "this-host")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sink = plugin._sink("127.0.0.1:1")(a_worker(model="deepseek-ai/DeepSeek-V3"), None)
    assert (sink.identity.pool, sink.identity.engine) == expected
    sink.close()


def test_settings_that_cannot_be_end_the_agent_before_it_touches_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLACER_TLS_CA", "/no/such/authority.pem")
    with pytest.raises(PlacerError, match=r"authority\.pem"):
        plugin._sink("127.0.0.1:1")


def test_every_call_shows_the_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACER_TOKEN", "hush")
    controller = Controller()
    server, address = serve(controller)
    sink = a_sink(address)
    sink.report(a_status())
    sink.push(1, a_full_recording())
    until(lambda: sink.plan(0) or controller.watches)
    shown = [headers["authorization"] for headers in controller.headers]
    assert shown == ["Bearer hush"] * 3
    sink.close()
    server.stop(grace=None).wait()


def test_a_token_file_that_is_gone_is_named_by_every_call(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACER_TOKEN_FILE", "/no/such/token")
    sink = a_sink(address)
    for call in CALLS:
        with pytest.raises(PlacerError, match="/no/such/token"):
            call(sink)
    sink.close()


def test_a_plan_of_a_later_epoch_is_taken_up(
    controller: Controller, sink: GrpcSink, tmp_path: Any
) -> None:
    write_plan(tmp_path / "p.json", a_plan())
    file = (tmp_path / "p.json").read_bytes()
    controller.plans = lambda _: iter([(5, file)])
    epoch, answer = until(lambda: sink.plan(4))
    assert epoch == 5
    assert answer.placement.digest == a_plan().placement.digest
    (request,) = controller.watches
    assert (request.pool, request.engine, request.after_epoch) == ("tiny", "host-1", 4)
    for known in (5, 6):
        assert sink.plan(known) is None


def test_of_several_plans_the_newest_counts_in_whatever_order_they_come(
    controller: Controller, sink: GrpcSink
) -> None:
    controller.plans = lambda _: iter([(6, b"first"), (8, b"second"), (7, b"third")])
    seen: list[int] = []

    def see() -> bool:
        if found := sink.plan(seen[-1] if seen else 0):
            seen.append(found[0])
        return 8 in seen

    until(see)
    assert seen in ([6, 8], [8])
    assert sink.plan(8) is None
    assert len(controller.watches) == 1


def test_where_there_is_no_plan_nobody_waits_for_one(
    controller: Controller, sink: GrpcSink
) -> None:
    assert sink.plan(0) is None
    until(lambda: controller.watches)
    assert sink.plan(0) is None
    assert len(controller.watches) == 1


def test_a_watch_that_breaks_is_told_once_and_opened_again_after_the_newest_plan(
    controller: Controller, sink: GrpcSink
) -> None:
    def plans(request: Any) -> Plans:
        if request.after_epoch > 8:
            return
        yield request.after_epoch + 5, b""
        raise ValueError("the controller breaks")

    controller.plans = plans
    told: list[str] = []
    epochs: list[int] = []

    def see() -> bool:
        try:
            if found := sink.plan(epochs[-1] if epochs else 0):
                epochs.append(found[0])
        except PlacerError as error:
            told.append(str(error))
        return len(controller.watches) == 3 and len(told) == 2

    until(see)
    assert [watch.after_epoch for watch in controller.watches] == [0, 5, 10]
    assert epochs == [5, 10]
    assert all("answers UNKNOWN" in text for text in told)
    assert sink.plan(10) is None


def test_all_plans_come_through_one_thread(controller: Controller, sink: GrpcSink) -> None:
    sink.plan(0)
    until(lambda: controller.watches)
    for _ in range(10):
        sink.plan(0)
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("placer-watch") == 1


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
    controller.plans = lambda _: iter([(5, plan)])
    epoch, error = until(lambda: sink.plan(0))
    assert epoch == 5
    assert isinstance(error, PlacerError)
    assert "plan 5 of 127.0.0.1:" in str(error)
    assert "\n" not in str(error)


def watch_until_it_breaks(sink: GrpcSink) -> None:
    until(lambda: sink.plan(0))


CALLS: list[Callable[[GrpcSink], object]] = [
    lambda sink: sink.push(1, a_recording(prefill=PROMPT)),
    lambda sink: sink.report(a_status()),
    watch_until_it_breaks,
]
every_call = pytest.mark.parametrize("call", CALLS, ids=["push", "report", "plan"])


@every_call
def test_an_address_where_nobody_listens_is_named(call: Callable[[GrpcSink], object]) -> None:
    sink = a_sink("127.0.0.1:1")
    with pytest.raises(PlacerError, match=r"127\.0\.0\.1:1 does not answer \(UNAVAILABLE\)"):
        call(sink)
    sink.close()


@pytest.mark.parametrize("call", CALLS[:2], ids=["push", "report"])
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
    def fail(_: object) -> Any:
        raise ValueError("the controller breaks")

    controller.answer = controller.plans = fail
    with pytest.raises(PlacerError, match="answers UNKNOWN"):
        call(sink)


@every_call
def test_a_server_of_something_else_is_an_error(call: Callable[[GrpcSink], object]) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sink = a_sink(f"127.0.0.1:{port}")
    with pytest.raises(PlacerError, match="answers UNIMPLEMENTED"):
        call(sink)
    sink.close()
    server.stop(grace=None).wait()


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_an_acknowledgement_of_another_push_is_an_error(
    controller: Controller, sink: GrpcSink, sequence: int
) -> None:
    controller.answer = lambda _: profile_pb2.PushResponse(sequence=sequence, send_affinity=True)
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
    sink = a_sink(address)
    controller.plans = lambda _: iter([(5, b" " * 2**16)])
    with pytest.raises(PlacerError, match="RESOURCE_EXHAUSTED"):
        until(lambda: sink.plan(0))
    controller.plans = lambda _: iter([(6, b"")])
    assert until(lambda: sink.plan(0))[0] == 6
    sink.close()
