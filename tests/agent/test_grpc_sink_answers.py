"""What a controller says to its workers: plans, and what goes wrong."""

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import pytest

from placer.agent import grpc_sink
from placer.agent.grpc_sink import GrpcSink
from placer.errors import PlacerError
from placer.files.plans import write_plan
from placer.v1 import profile_pb2
from tests.agent.controllers import (
    CALLS,
    Controller,
    Plans,
    a_full_recording,
    a_sink,
    until,
)
from tests.agent.workers import a_plan

pytestmark = pytest.mark.usefixtures("plainly")


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


every_call = pytest.mark.parametrize("call", CALLS, ids=["push", "report", "plan"])


@every_call
def test_an_address_where_nobody_listens_is_named(call: Callable[[GrpcSink], object]) -> None:
    sink = a_sink("127.0.0.1:1")
    with pytest.raises(PlacerError, match=r"no controller answers at 127\.0\.0\.1:1"):
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
        with pytest.raises(PlacerError, match=r"no controller answers"):
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
    with pytest.raises(PlacerError, match="larger than max"):
        until(lambda: sink.plan(0))
    controller.plans = lambda _: iter([(6, b"")])
    assert until(lambda: sink.plan(0))[0] == 6
    sink.close()
