"""Recordings to a controller, and plans from it; protos/placer/v1/*.proto say how."""

import json
import logging
from dataclasses import asdict, replace
from typing import Any

import grpc

from placer.agent.recording import Recording
from placer.agent.reporter import PATIENCE_S
from placer.agent.sampling import Sampling, Sequence
from placer.agent.streams import Pushes, Watch, told
from placer.channel import Channels, Settings
from placer.client import ControllerError
from placer.clock import ThreadClock
from placer.errors import FileError, PlacerError
from placer.files.plans import LIMIT, parse_plan
from placer.messages import PUSH_BYTES, trace_message
from placer.model import ModelShape
from placer.plan import Plan
from placer.profile import Profile
from placer.v1 import fleet_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2 import WatchRequest
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub
from placer.worker import Identity, Status, Worker

DEADLINE_S = 5.0
TRACE_BYTES = 15 * 2**20  # of a push, of which a controller takes a MiB more
ROOM = PUSH_BYTES - 2**20  # for pairs and traces; loads and names have less than the rest
OPTIONS = [
    ("grpc.max_receive_message_length", LIMIT),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.enable_retries", 0),  # the reporter tries again by itself
    # Connecting ends before a call does, and after long absence is tried again as often as pushes.
    ("grpc.min_reconnect_backoff_ms", 4_000),
    ("grpc.max_reconnect_backoff_ms", round(PATIENCE_S * 1000)),
]

log = logging.getLogger("vllm.placer")


class GrpcSink:
    """A worker's controller. Affinity and traces are large, and traces tell what users wrote: they
    go when the controller asks for them, by the answers to pushes and to reports."""

    def __init__(
        self,
        address: str,
        worker: Worker,
        identity: Identity,
        model: ModelShape | None,
        clock: ThreadClock,
    ) -> None:
        self.address, self.identity, self.model = address, identity, model
        self._id = profile_pb2.WorkerId(
            pool=identity.pool,
            engine=identity.engine,
            worker=worker.name,
            incarnation=int(clock.now() * 1e9),
        )
        settings = Settings.of_environment()
        self._channels = Channels(address, settings, log, OPTIONS)
        for fault in settings.credentials.faults(clock.now()):
            log.warning("placer: %s", fault)
        self._pushes: Pushes | None = None
        self._watch = Watch(address, self._open_watch, clock)
        self.sampling: Sampling | None = None
        self._wants_affinity = False
        self._paired: set[str] = set()  # phases whose pairs the last push had
        self._warned: set[str] = set()  # reasons that were logged

    def push(self, sequence: int, recording: Recording) -> None:
        profiles = recording.profiles()
        self._paired = self._with_room(profiles) if self._wants_affinity else set()
        pairs = sum(_pair_bytes(one) for one in profiles if one.phase in self._paired)
        request = profile_pb2.PushRequest(
            id=self._id,
            sequence=sequence,
            window_s=recording.window_s,
            counts=[_counts(one, one.phase in self._paired) for one in profiles],
            trace=_trace(recording, self.sampling, min(TRACE_BYTES, ROOM - pairs)),
            steps=[
                profile_pb2.Steps(phase=_phase(phase), count=int(pace.steps), seconds=pace.busy_s)
                for phase, pace in recording.paces.items()
            ],
        )
        try:
            response = self._hand_over(request)
        except Exception:
            self._end_pushes()  # what it answers later would be taken for the next push's
            raise
        self._wants_affinity = response.send_affinity
        if response.refused:
            why = " ".join(response.refused.split())
            text = f"the controller at {self.address} refuses push {sequence}, which is lost: {why}"
            self._warn_once(why, text)

    def plan(self, after: int) -> tuple[int, Plan | PlacerError] | None:
        """What the watch brought. Raises ControllerError when that broke, once for each break."""
        if (found := self._watch.newest(after)) is None:
            return None
        epoch, file = found
        name = f"plan {epoch} of {self.address}"
        try:
            return epoch, parse_plan(file.decode(), name)
        except (PlacerError, UnicodeDecodeError) as error:
            said = str(error)
            named = said if said.startswith(name) else f"{name}: {said}"
            return epoch, FileError(named)

    def report(self, status: Status) -> None:
        worker = {name: getattr(status.worker, name) for name in Worker.__slots__}
        rest = {name: getattr(status, name) for name in Status.__slots__ if name != "worker"}
        request = fleet_pb2.RegisterRequest(
            id=self._id,
            worker=fleet_pb2.Worker(**worker),
            shape="" if self.model is None else json.dumps(asdict(self.model)),
            actor=self.identity.actor,
            api=self.identity.api,
            metrics=self.identity.metrics,
            pod_name=self.identity.pod.name,
            pod_uid=self.identity.pod.uid,
            node=self.identity.pod.node,
            **rest,
        )
        try:
            fleet = FleetServiceStub(self._channels.get())
            answer = fleet.Register(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise told(self.address, error) from error
        self.sampling = None
        if answer.HasField("sampling"):
            self.sampling = Sampling(answer.sampling.every_s, answer.sampling.token_ids)

    def _warn_once(self, reason: str, text: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            log.warning("placer: %s", text)

    def close(self) -> None:
        """Let go of the streams and of the connection; nothing can be called any more."""
        self._watch.stop()
        self._end_pushes()
        self._channels.close()

    def _with_room(self, profiles: list[Profile]) -> set[str]:
        """Phases whose pairs go with this push: of many experts not all, but then in turns."""
        room, found = ROOM, set[str]()
        for one in sorted(profiles, key=lambda one: one.phase in self._paired):
            if (size := _pair_bytes(one)) <= room:
                room -= size
                found.add(one.phase)
        if profiles and not found:
            self._warn_once(
                "pairs",
                f"pairs of experts are not pushed: a phase's have {size:,} bytes, and a push has "
                f"room for {ROOM:,}: plans are made from loads alone",
            )
        return found

    def _hand_over(self, request: Any) -> Any:
        if self._pushes is not None and not self._pushes.is_open:
            self._end_pushes()
        if self._pushes is None:
            self._pushes = Pushes(self.address, ProfileServiceStub(self._channels.get()))
        response = self._pushes.ask(request, DEADLINE_S)
        if response.sequence != request.sequence:
            raise ControllerError(
                f"the controller at {self.address} acknowledged push {response.sequence} and not "
                f"{request.sequence}: is it placer's?"
            )
        return response

    def _end_pushes(self) -> None:
        if self._pushes is not None:
            self._pushes.close()
            self._pushes = None

    def _open_watch(self, after: int) -> Any:
        own = self._id
        request = WatchRequest(pool=own.pool, engine=own.engine, after_epoch=after)
        return PlacementServiceStub(self._channels.get()).Watch(request)


def _phase(phase: str) -> Any:
    return profile_pb2.Phase.Value(f"PHASE_{phase.upper()}")


def _pair_bytes(profile: Profile) -> int:
    """On the wire."""
    assert profile.transitions is not None and profile.coactivation is not None
    return 4 * (profile.transitions.size + profile.coactivation.size)


def _counts(profile: Profile, affinity: bool) -> Any:
    layers, experts = profile.load.shape
    found = profile_pb2.Counts(
        phase=_phase(profile.phase),
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


def _trace(recording: Recording, sampling: Sampling | None, room: int) -> Any:
    """The sampled requests that have room in a push, in bytes; None if there are none, or none are
    wanted."""
    kept: list[Sequence] = []
    for one in recording.whole if sampling else ():
        room -= len(one.expert_ids) * (2 * one.expert_ids[0].size + 4)
        if room < 0:
            break
        kept.append(one)
    trace = replace(recording, sequences=kept).trace()
    if trace is None or sampling is None:
        return None
    if not sampling.token_ids:
        trace = replace(trace, token_ids=None)
    marks = [one.mark for one in kept] if any(one.mark for one in kept) else []
    ranks = [one.rank for one in kept if one.rank is not None]
    return trace_message(trace, [one.prompt for one in kept], marks, ranks)
