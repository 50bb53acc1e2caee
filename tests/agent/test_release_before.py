"""A controller of the release before, understood by this agent."""

import pytest

from placer.agent.grpc_sink import GrpcSink
from placer.plan import Plan
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from tests import release_before
from tests.agent.controllers import Controller, a_full_recording, until
from tests.agent.workers import a_status

pytestmark = pytest.mark.usefixtures("plainly")


def test_its_answers_are_understood(
    controller: Controller, sink: GrpcSink, caplog: pytest.LogCaptureFixture
) -> None:
    controller.answer = lambda _: fleet_pb2.RegisterResponse.FromString(release_before.REGISTERED)
    sink.report(a_status())
    assert sink.sampling is None  # it asks for no requests
    answers = iter([*release_before.PUSHED, *release_before.REFUSED])
    controller.answer = lambda _: profile_pb2.PushResponse.FromString(next(answers))
    for sequence in (1, 2, 3):
        sink.push(sequence, a_full_recording())
    (warning,) = caplog.messages
    assert warning.endswith(
        "push 3, which is lost: load has 31 bytes and not 32, for [2, 4] uint32"
    )


def test_its_plans_are_read(controller: Controller, sink: GrpcSink) -> None:
    offered = placement_pb2.WatchResponse.FromString(release_before.OFFERED)
    controller.plans = lambda _: iter([(offered.epoch, offered.file)])
    epoch, plan = until(lambda: sink.plan(0))
    assert epoch == 7
    assert isinstance(plan, Plan)
    assert plan.placement.physical_to_logical.tolist() == [[0, 2, 1, 3]] * 2
