"""A controller that is dead, slow or lying changes no output; an honest one is heard."""

import socket
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
from placer.v1.fleet_pb2 import RegisterResponse
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from placer.v1.placement_pb2 import WatchResponse
from placer.v1.placement_pb2_grpc import (
    PlacementServiceServicer,
    add_PlacementServiceServicer_to_server,
)
from placer.v1.profile_pb2 import PushResponse
from placer.v1.profile_pb2_grpc import ProfileServiceServicer, add_ProfileServiceServicer_to_server
from tests.vllm.engines import MODEL, Engine
from tests.vllm.story import REDUNDANT, Story

TOKENS = 60
EPOCH = 10_000  # behind all lies
LIE = (
    b'{"format": "placer.plan", "version": 1, "placement": {"gpus": 2, "experts": 16, '
    b'"physical_to_logical": [[7, 7], [7, 7]]}}'
)


@dataclass
class Controller(ProfileServiceServicer, PlacementServiceServicer, FleetServiceServicer):
    """What it answers is its mood's."""

    mood: str = "slow"
    plan: bytes = b""
    heard: set[tuple[str, str]] = field(default_factory=set)  # moods, and what was called in them
    pushes: list[Any] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)

    def Push(self, requests: Any, context: Any) -> Any:  # noqa: N802
        for request in requests:
            self._hear("Push", context)
            if self.mood == "lying":
                yield PushResponse(sequence=request.sequence + 7)
            else:
                self.pushes.append(request)
                yield PushResponse(sequence=request.sequence)

    def Watch(self, request: Any, context: Any) -> Any:  # noqa: N802
        epoch = request.after_epoch
        while context.is_active():
            self._hear("Watch", context)
            if self.mood == "lying":
                epoch += 1
                yield WatchResponse(epoch=epoch, file=LIE)
            elif self.plan and epoch < EPOCH:
                epoch = EPOCH
                yield WatchResponse(epoch=epoch, file=self.plan)
            time.sleep(0.5)

    def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._hear("Register", context)
        self.reports[request.worker.name] = request
        return RegisterResponse()

    def _hear(self, what: str, context: Any) -> None:
        mood = self.mood
        self.heard.add((mood, what))
        if mood == "slow":
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
    controller, tokens = Controller(), {}  # type: ignore[abstract]
    server = grpc.server(futures.ThreadPoolExecutor(16))
    add_ProfileServiceServicer_to_server(controller, server)
    add_PlacementServiceServicer_to_server(controller, server)
    add_FleetServiceServicer_to_server(controller, server)
    # Bound, but nobody answers before it is started.
    port = server.add_insecure_port("127.0.0.1:0")
    with Engine(place, f"127.0.0.1:{port}", width=2, redundant=REDUNDANT) as engine:
        tokens["dead"] = engine.generate(story.prompts, TOKENS).tokens
        server.start()
        for mood in ("slow", "lying", "honest"):
            controller.mood = mood
            calls = {(mood, what) for what in ("Push", "Watch", "Register")}
            _until(lambda calls=calls: calls <= controller.heard)  # type: ignore[misc]
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
    assert {report.epoch for report in reports.values()} == {EPOCH}
    names = {(report.id.pool, report.id.engine) for report in reports.values()}
    assert names == {(MODEL.name, socket.gethostname())}


def test_every_push_arrives_or_is_counted_as_dropped(outcome: Outcome) -> None:
    numbers = sorted({push.sequence for push in outcome.controller.pushes})
    dropped = outcome.controller.reports["worker-0"].dropped
    assert {push.id.worker for push in outcome.controller.pushes} == {"worker-0"}
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
