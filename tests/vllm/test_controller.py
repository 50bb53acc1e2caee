"""A controller that is dead, slow or lying changes no output; an honest one is heard."""

import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

from placer.files.plans import write_plan
from placer.v1 import agent_pb2 as pb
from placer.v1.agent_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from tests.vllm.engines import Engine
from tests.vllm.story import REDUNDANT, Story

TOKENS = 60
LIE = (
    b'{"format": "placer.plan", "version": 1, "placement": {"gpus": 2, "experts": 16, '
    b'"physical_to_logical": [[7, 7], [7, 7]]}}'
)


@dataclass
class Controller(AgentServiceServicer):  # type: ignore[misc]
    """What it answers is its mood's."""

    mood: str = "slow"
    plan: bytes = b""
    heard: list[str] = field(default_factory=list)
    pushes: list[Any] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)

    def Push(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._hear(context)
        if self.mood == "lying":
            return pb.PushResponse(sequence=request.sequence + 7)
        self.pushes.append(request)
        return pb.PushResponse(sequence=request.sequence)

    def GetPlan(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._hear(context)
        if self.mood == "lying":
            return pb.GetPlanResponse(epoch=request.after_epoch + 1, plan=LIE)
        return pb.GetPlanResponse(epoch=1000 if self.plan else 0, plan=self.plan)

    def Report(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._hear(context)
        self.reports[request.worker.name] = request
        return pb.ReportResponse()

    def _hear(self, context: Any) -> None:
        self.heard.append(self.mood)
        if self.mood == "slow":
            time.sleep(8)
            context.abort(grpc.StatusCode.INTERNAL, "too late")


@dataclass
class Outcome:
    """tokens: what was generated under each mood; maps: each rank's in the end"""

    tokens: dict[str, list[list[int]]]
    maps: list[list[list[int]]]
    controller: Controller


@pytest.fixture(scope="module")
def outcome(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    place = tmp_path_factory.mktemp("controller")
    controller, tokens = Controller(), {}
    server = grpc.server(futures.ThreadPoolExecutor(8))
    add_AgentServiceServicer_to_server(controller, server)
    # Bound, but nobody answers before it is started.
    port = server.add_insecure_port("127.0.0.1:0")
    with Engine(place, f"127.0.0.1:{port}", width=2, redundant=REDUNDANT) as engine:
        tokens["dead"] = engine.generate(story.prompts, TOKENS).tokens
        server.start()
        for mood in ("slow", "lying", "honest"):
            controller.mood = mood
            _until(lambda mood=mood: mood in controller.heard)  # type: ignore[misc]
            tokens[mood] = engine.generate(story.prompts, TOKENS).tokens
        write_plan(place / "plan.json", story.plan)
        controller.plan = (place / "plan.json").read_bytes()
        _until(lambda: _applied(engine, story, controller))
        tokens["applied"] = engine.generate(story.prompts, TOKENS).tokens
        maps = engine.call("placer_map")
    server.stop(None)
    return Outcome(tokens, maps, controller)


@pytest.mark.parametrize("mood", ["dead", "slow", "lying", "honest", "applied"])
def test_no_token_differs(story: Story, outcome: Outcome, mood: str) -> None:
    undisturbed = [tokens[:TOKENS] for tokens in story.undisturbed.tokens]
    assert outcome.tokens[mood] == undisturbed


def test_an_honest_controllers_plan_is_applied_and_acknowledged_by_every_rank(
    story: Story, outcome: Outcome
) -> None:
    planned = story.plan.placement
    for table in outcome.maps:
        np.testing.assert_array_equal(table, planned.physical_to_logical)
    reports = outcome.controller.reports
    assert sorted(reports) == ["worker-0", "worker-1"]
    assert {report.digest for report in reports.values()} == {planned.digest}


def test_every_push_arrives_or_is_counted_as_dropped(outcome: Outcome) -> None:
    numbers = sorted({push.sequence for push in outcome.controller.pushes})
    dropped = outcome.controller.reports["worker-0"].dropped
    assert {push.worker for push in outcome.controller.pushes} == {"worker-0"}
    assert set(range(1, numbers[-1] + 1)) >= set(numbers)
    assert numbers[-1] - len(numbers) <= dropped


def _applied(engine: Engine, story: Story, controller: Controller) -> bool:
    engine.generate(story.prompts[:1], 20)
    wanted = story.plan.placement.digest
    return [report.digest for report in controller.reports.values()] == [wanted] * 2


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 150  # the agents may pause for a minute
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.2)
