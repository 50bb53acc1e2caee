"""What a worker says to its controller: pushes, registrations, who it is."""

import json
import logging
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from placer import model
from placer.agent import grpc_sink, sinks
from placer.agent.grpc_sink import GrpcSink
from placer.agent.sampling import Sampling
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.files.specs import shape_of
from placer.pace import Pace
from placer.v1 import profile_pb2
from placer.worker import Identity, Status, Worker
from tests.agent.controllers import (
    CALLS,
    GENEROUS_S,
    PROMPT,
    Controller,
    a_full_recording,
    a_sink,
    array,
    serve,
    until,
)
from tests.agent.workers import a_recording, a_sequence, a_status, a_worker

pytestmark = pytest.mark.usefixtures("plainly")


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


def test_steps_that_were_measured_arrive(controller: Controller, sink: GrpcSink) -> None:
    paces = {"prefill": Pace(2, 0.5, 2.5), "decode": Pace(30, 1.5, 2.5)}
    sink.push(1, replace(a_full_recording(), paces=paces))
    prefill, decode = controller.requests[0].steps
    assert (prefill.phase, prefill.count, prefill.seconds) == (profile_pb2.PHASE_PREFILL, 2, 0.5)
    assert (decode.phase, decode.count, decode.seconds) == (profile_pb2.PHASE_DECODE, 30, 1.5)


def test_counts_of_any_size_arrive_exactly(controller: Controller, sink: GrpcSink) -> None:
    recording = a_recording(prefill=PROMPT)
    last = [2**31, 255, 65_536, 2**32 - 1]
    first = [2**24 - 1, 256, 2**31]
    recording.counts.load[0] = [[*first, sum(last) - sum(first)], last]
    recording.counts.tokens[0] = sum(last)
    sink.push(1, recording)
    (counts,) = controller.requests[0].counts
    assert array(counts.load, 2, 4) == recording.counts.load[0].tolist()


def test_affinity_goes_only_after_the_controller_asked(
    controller: Controller, sink: GrpcSink
) -> None:
    for sequence, send_affinity in enumerate((False, True, False, False), 1):
        controller.send_affinity = send_affinity
        sink.push(sequence, a_full_recording())
    has = [
        [bool(counts.transitions and counts.coactivation) for counts in request.counts]
        for request in controller.requests
    ]
    assert has == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    bare = controller.requests[0].counts[0]
    assert (bare.transitions, bare.coactivation) == (b"", b"")


def test_pairs_of_two_phases_that_do_not_fit_into_a_push_take_turns(
    controller: Controller, sink: GrpcSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 layers of 4 experts: 16 numbers of transitions and 32 of co-activation in each phase."""
    monkeypatch.setattr(grpc_sink, "ROOM", 4 * 48 + 1)
    controller.send_affinity = True
    for sequence in range(1, 5):
        sink.push(sequence, a_full_recording())
    has = [[bool(one.coactivation) for one in request.counts] for request in controller.requests]
    assert has == [[False, False], [True, False], [False, True], [True, False]]
    assert all(one.load for request in controller.requests for one in request.counts)


def test_where_not_even_one_phase_fits_loads_go_alone_and_the_log_says_so_once(
    controller: Controller, sink: GrpcSink, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(grpc_sink, "ROOM", 4 * 48 - 1)
    controller.send_affinity = True
    for sequence in range(1, 4):
        sink.push(sequence, a_full_recording())
    assert not any(one.transitions for request in controller.requests for one in request.counts)
    assert [one for one in caplog.messages if "a phase's have 192 bytes" in one] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("name", [name for name in model.PRESETS if model.preset(name).moe_layers])
def test_a_push_has_room_for_a_phase_of_every_model_that_is_known(name: str) -> None:
    shape = model.preset(name)
    pairs = 4 * (2 * len(shape.moe_layers) - 1) * shape.experts**2
    assert pairs <= grpc_sink.ROOM


def test_affinity_arrives_exactly(controller: Controller, sink: GrpcSink) -> None:
    controller.send_affinity = True
    sink.push(1, a_full_recording())
    top_2 = [[[0, 1], [2, 3]], [[0, 2], [3, 2]]]  # 2 tokens
    sink.push(2, a_recording(prefill=top_2))
    (counts,) = controller.requests[1].counts
    first = [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert array(counts.transitions, 1, 4, 4) == [first]
    assert array(counts.coactivation, 2, 4, 4) == [
        [[0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0]],
    ]


def test_traces_go_as_long_as_the_answers_to_reports_ask_for_them(
    controller: Controller, sink: GrpcSink
) -> None:
    """A controller that says nothing of sampling, as those of before, gets none; what it says of
    affinity is of no matter."""
    controller.send_affinity = True
    wanted = [None, profile_pb2.Sampling(every_s=30.0, token_ids=True), None]
    told = []
    for sequence, sampling in enumerate(wanted, 1):
        controller.sampling = sampling
        sink.report(a_status())
        told.append(sink.sampling)
        sink.push(sequence, a_full_recording())
    assert told == [None, Sampling(30.0, token_ids=True), None]
    pushed = [one for one in controller.requests if isinstance(one, profile_pb2.PushRequest)]
    assert [request.HasField("trace") for request in pushed] == [False, True, False]


@pytest.mark.parametrize("token_ids", [True, False])
def test_traces_arrive_exactly_with_vocabulary_ids_only_if_those_are_asked_for(
    controller: Controller, sink: GrpcSink, token_ids: bool
) -> None:
    controller.sampling = profile_pb2.Sampling(token_ids=token_ids)
    sink.report(a_status())
    top_2 = [[[0, 1], [2, 3]], [[0, 2], [3, 2]]]  # 2 tokens
    sampled = [a_sequence(top_2, first_id=7, prompt=1), a_sequence(top_2[:1], first_id=70_000)]
    sink.push(1, a_recording(prefill=top_2, sampled=sampled))
    trace = controller.requests[1].trace
    assert (trace.layers, trace.top_k) == (2, 2)
    assert (list(trace.seq_lens), list(trace.prompt_lens)) == ([2, 1], [1, 0])
    ids = np.frombuffer(trace.expert_ids, dtype="<u2").reshape(3, 2, 2)
    assert ids.tolist() == [[[0, 1], [2, 3]], [[0, 2], [2, 3]], [[0, 1], [2, 3]]]
    assert array(trace.token_ids, -1) == ([7, 8, 70_000] if token_ids else [])


def test_asked_for_traces_it_goes_without_where_no_request_was_sampled(
    controller: Controller, sink: GrpcSink
) -> None:
    controller.sampling = profile_pb2.Sampling()
    sink.report(a_status())
    sink.push(1, a_recording(prefill=PROMPT))
    assert not controller.requests[1].HasField("trace")


def test_a_push_carries_no_more_requests_than_a_controller_takes(
    controller: Controller, sink: GrpcSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2 layers, top-1: 4 bytes of experts and 4 of a vocabulary id."""
    monkeypatch.setattr(grpc_sink, "TRACE_BYTES", 4 * 8)
    controller.sampling = profile_pb2.Sampling()
    sink.report(a_status())
    sink.push(1, a_recording(prefill=PROMPT, sampled=[a_sequence(PROMPT), a_sequence(PROMPT)]))
    assert list(controller.requests[1].trace.seq_lens) == [3]


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
    first = Controller()  # type: ignore[abstract]
    server, address = serve(first)
    sink = a_sink(address)
    sink.push(1, a_full_recording())
    server.stop(grace=None).wait()
    assert sink._pushes is not None
    pushes = sink._pushes
    until(lambda: not pushes.is_open)
    second = Controller()  # type: ignore[abstract]
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
        with pytest.raises(PlacerError, match=r"no controller answers"):
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
    worker = Worker(
        "worker-3", "a model", 58, 256, 8, 288, 3, 16, can_apply=True, records=False,
        can_resize=True, tp_size=2, most_ranks=32,
    )  # fmt: skip
    status = Status(worker, 7, "sha256:ab", 8, "why not", 2**40, 9, "what keeps it")
    shape = model.preset("deepseek-v3")
    identity = Identity("a pool", "an engine", "an actor", "http://host:1", "http://host:2/metrics")
    sink = GrpcSink(address, worker, identity, shape, SystemClock())
    sink.report(status)
    sink.close()
    (request,) = controller.requests
    own = {"id", "shape", "actor", "api", "metrics", "pod_name", "pod_uid", "node"}
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
    told = request.actor, request.api, request.metrics
    assert told == ("an actor", "http://host:1", "http://host:2/metrics")
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
        ({}, ("DeepSeek-V3", "this-host", "")),
        ({"PLACER_POOL": "chat", "PLACER_ENGINE": " blue "}, ("chat", "blue", "")),
        ({"PLACER_POOL": " ", "PLACER_ENGINE": ""}, ("DeepSeek-V3", "this-host", "")),
        ({"PLACER_API": " http://h:1 "}, ("DeepSeek-V3", "this-host", "http://h:1")),
    ],
    ids=["neither", "both", "empty", "server"],
)
def test_the_environment_names_pool_and_engine_or_else_model_and_host(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[str, str, str]
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "this-host")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    sink = sinks.way_to("127.0.0.1:1", SystemClock())(
        a_worker(model="deepseek-ai/DeepSeek-V3"), None
    )
    assert isinstance(sink, GrpcSink)
    identity = sink.identity
    assert (identity.pool, identity.engine, identity.api) == expected
    sink.close()


def test_the_environment_says_in_which_pod_it_runs(
    controller: Controller, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"POD_NAME": "chat-0-1", "POD_UID": " 5f0c ", "NODE": "gpu-7"}
    for name, value in told.items():
        monkeypatch.setenv(f"PLACER_{name}", value)
    sink = sinks.way_to(address, SystemClock())(a_worker(), None)
    assert isinstance(sink, GrpcSink)
    sink.report(a_status())
    sink.close()
    (request,) = controller.requests
    assert (request.pod_name, request.pod_uid, request.node) == ("chat-0-1", "5f0c", "gpu-7")


def test_settings_that_cannot_be_end_the_agent_before_it_touches_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLACER_TLS_CA", "/no/such/authority.pem")
    with pytest.raises(PlacerError, match=r"authority\.pem"):
        sinks.way_to("127.0.0.1:1", SystemClock())


def test_every_call_shows_the_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACER_TOKEN", "hush")
    controller = Controller()  # type: ignore[abstract]
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
