"""Recordings to a controller, and plans from it; protos/placer/v1/agent.proto says how."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np

from placer.agent.recording import Recording
from placer.agent.status import Status, Worker
from placer.errors import FileError, PlacerError
from placer.files.plans import LIMIT, parse_plan
from placer.plan import Plan
from placer.profile import Profile
from placer.trace import Trace
from placer.v1 import agent_pb2 as pb
from placer.v1.agent_pb2_grpc import AgentServiceStub

DEADLINE_S = 5.0
OPTIONS = [
    ("grpc.max_receive_message_length", LIMIT),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.enable_retries", 0),  # the courier tries again by itself
]


class ControllerError(PlacerError):
    """The controller is not there, too slow, or says what makes no sense."""


class GrpcSink:
    """Of one worker. Affinity and traces are large: they go when the controller asks for them."""

    def __init__(self, address: str, worker: Worker) -> None:
        self.address, self.worker = address, worker
        self._stub = AgentServiceStub(grpc.insecure_channel(address, options=OPTIONS))
        self._wants_affinity = False

    def push(self, sequence: int, recording: Recording) -> None:
        trace = recording.trace() if self._wants_affinity else None
        request = pb.PushRequest(
            worker=self.worker.name,
            sequence=sequence,
            window_s=recording.window_s,
            counts=[_counts(profile, self._wants_affinity) for profile in recording.profiles()],
            trace=None if trace is None else _trace(trace),
        )
        response = self._call(self._stub.Push, request)
        if response.sequence != sequence:
            raise ControllerError(
                f"the controller at {self.address} acknowledged push {response.sequence} and not "
                f"{sequence}: is it placer's?"
            )
        self._wants_affinity = response.send_affinity

    def plan(self, after: int) -> tuple[int, Plan | PlacerError] | None:
        request = pb.GetPlanRequest(worker=self.worker.name, after_epoch=after)
        response = self._call(self._stub.GetPlan, request)
        if response.epoch <= after:
            return None
        name = f"plan {response.epoch} of {self.address}"
        try:
            return response.epoch, parse_plan(response.plan.decode(), name)
        except (PlacerError, UnicodeDecodeError) as error:
            said = str(error)
            named = said if said.startswith(name) else f"{name}: {said}"
            return response.epoch, FileError(named)

    def report(self, status: Status) -> None:
        worker = {name: getattr(status.worker, name) for name in Worker.__slots__}
        rest = {name: getattr(status, name) for name in Status.__slots__ if name != "worker"}
        self._call(self._stub.Report, pb.ReportRequest(worker=pb.Worker(**worker), **rest))

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ControllerError(
                    f"the controller at {self.address} does not answer ({code.name})"
                    ": is PLACER_AGENT its address, and does it run?"
                ) from error
            raise ControllerError(
                f"the controller at {self.address} answers {code.name} ({error.details()})"
                ": is it placer's, and of this version?"
            ) from error


def _counts(profile: Profile, affinity: bool) -> pb.Counts:
    layers, experts = profile.load.shape
    found = pb.Counts(
        phase=pb.Phase.Value(f"PHASE_{profile.phase.upper()}"),
        layers=layers,
        experts=experts,
        top_k=profile.top_k,
        tokens=int(profile.tokens),
        sequences=profile.sequences,
        load=profile.load.astype("<u4").tobytes(),
    )
    if affinity and profile.transitions is not None and profile.coactivation is not None:
        found.transitions = profile.transitions.astype("<u4").tobytes()
        found.coactivation = profile.coactivation.astype("<u4").tobytes()
    return found


def _trace(trace: Trace) -> pb.Trace:
    assert trace.token_ids is not None
    return pb.Trace(
        layers=trace.layers,
        top_k=trace.top_k,
        seq_lens=trace.seq_lens.tolist(),
        expert_ids=trace.expert_ids.astype("<u2").tobytes(),
        token_ids=np.asarray(trace.token_ids).astype("<u4").tobytes(),
    )
