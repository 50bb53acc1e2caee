"""Messages <-> values. What comes in is checked here: nobody is trusted."""

import json
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from controller.fleet import Registration, WorkerId
from controller.operations import Operation
from controller.store import Record
from controller.windows import Delta
from placer.agent.status import Worker
from placer.arrays import IntArray
from placer.errors import ModelError, RoutingError
from placer.files.specs import first_fault, shape_of
from placer.model import ModelShape
from placer.pace import Pace
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2

PHASES = {profile_pb2.PHASE_PREFILL: "prefill", profile_pb2.PHASE_DECODE: "decode"}
MOST = 4096  # layers or experts: no model has as many
SLOTS = 2**20  # of all layers
LARGEST = 2**48  # of what is counted up: milliseconds of 9000 years; 20,000 of them still add up
Number = TypeVar("Number", int, float)
TEXT = 1000  # characters of what a worker says: it is kept and shown
SHAPE = 2**16  # of a model's sizes


def worker_id(message: Any) -> WorkerId:
    return WorkerId(message.pool, message.engine, message.worker, message.incarnation)


def registration(message: Any) -> Registration:
    """Raises ModelError for a shape that is none, RoutingError for numbers that cannot be."""
    told = {field: getattr(message.worker, field) for field in Worker.__slots__}
    worker = Worker(**told)
    if worker.slots * worker.layers > SLOTS or worker.ep_rank >= worker.ep_size:
        raise ModelError(
            f"rank {worker.ep_rank} of {worker.ep_size}, {worker.layers} layers of {worker.slots} "
            f"slots: ranks count from 0, and all slots are at most {SLOTS}"
        )
    numbers = ("epoch", "refused_epoch", "tokens", "dropped")
    for field in numbers:
        number(field, getattr(message, field))
    texts = ("actor", "digest", "refused", "trouble")
    told = {field: getattr(message, field) for field in numbers}
    told |= {field: _line(getattr(message, field)) for field in texts}
    model = replace(worker, model=_line(worker.model))
    return Registration(worker_id(message.id), model, _shape(message.shape, worker), **told)


def number(name: str, value: Number) -> Number:
    if value > LARGEST:
        raise RoutingError(f"{name} is {value}: at most {LARGEST} can be counted")
    return value


def _line(text: str) -> str:
    return " ".join(text[:TEXT].split())


def _shape(text: str, worker: Worker) -> ModelShape | None:
    sizes = (worker.layers, worker.experts, worker.top_k)
    if not all(0 < size <= MOST for size in sizes):
        raise ModelError(f"{worker.dims}, top-{worker.top_k}: sizes are 1 to {MOST}")
    if not text:
        return None
    if len(text) > SHAPE:
        raise ModelError(f"the model's shape has {len(text)} characters: at most {SHAPE} are read")
    try:
        shape = shape_of(json.loads(text))
    except (ValueError, RecursionError) as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(f"the model's shape: {fault}: write it as in a model file") from error
    if (shape.layers, shape.experts, shape.top_k) != sizes:
        raise ModelError(f"{shape.name} has {shape.dims} but the worker {worker.dims}")
    return shape


def deltas(message: Any) -> list[Delta]:
    """Of a push. Raises RoutingError for counts that are cut short or make no sense."""
    return [_delta(counts) for counts in message.counts]


def paces(message: Any) -> dict[str, Pace]:
    """Of a push, by phase. Raises RoutingError for steps that make no sense."""
    window_s = number("window_s", message.window_s)
    return {
        _phase(one.phase): Pace(
            number("steps", one.count), number("seconds", one.seconds), window_s
        )
        for one in message.steps
    }


def _phase(value: int) -> str:
    if value not in PHASES:
        raise RoutingError(f"phase {value}: it is prefill or decode")
    return PHASES[value]


def _delta(counts: Any) -> Delta:
    layers, experts = counts.layers, counts.experts
    for name in ("tokens", "sequences"):
        number(name, getattr(counts, name))
    phase = _phase(counts.phase)
    if not (0 < layers <= MOST and 0 < experts <= MOST and 0 < counts.top_k <= experts):
        raise RoutingError(f"{layers} layers x {experts} experts, top-{counts.top_k}: check them")
    transitions = coactivation = None
    if counts.transitions and counts.coactivation:
        transitions = _array("transitions", counts.transitions, (layers - 1, experts, experts))
        coactivation = _array("coactivation", counts.coactivation, (layers, experts, experts))
    return Delta(
        phase=phase,
        top_k=counts.top_k,
        tokens=counts.tokens,
        sequences=counts.sequences,
        load=_array("load", counts.load, (layers, experts)),
        transitions=transitions,
        coactivation=coactivation,
    )


def _array(name: str, data: bytes, shape: tuple[int, ...]) -> IntArray:
    size = int(np.prod(shape)) * 4
    if len(data) != size:
        raise RoutingError(f"{name} has {len(data)} bytes and not {size}, for {list(shape)} uint32")
    return np.frombuffer(data, dtype="<u4").reshape(shape)


def plan(record: Record, file: bytes = b"") -> Any:
    body = record.body
    state = placement_pb2.PlanState.Value(f"PLAN_STATE_{_upper(body['state'])}")
    told = {field: body[field] for field in ("digest", "before", "moved", "moved_bytes", "gain")}
    told["whole_gain"] = body.get("whole_gain")
    return placement_pb2.Plan(
        id=record.id, pool=record.pool, state=state, version=record.version,
        reason=record.reason, at_s=record.at_s, file=file, **told,
    )  # fmt: skip


def operation(record: Record) -> Any:
    found = Operation.of(record)
    phase = fleet_pb2.OperationPhase.Value(f"OPERATION_PHASE_{_upper(found.phase)}")
    return fleet_pb2.Operation(
        id=found.id, idempotency_key=found.key, pool=found.pool, kind=found.kind, phase=phase,
        plan_id=found.plan_id, progress=found.progress, reason=found.why or record.reason,
        begun_s=found.begun_s, changed_s=record.at_s, copied_bytes=found.copied_bytes,
        longest_pause_s=found.longest_pause_s, version=record.version,
    )  # fmt: skip


def record(found: Record) -> Any:
    return fleet_pb2.Record(
        kind=found.kind, id=found.id, version=found.version, pool=found.pool, at_s=found.at_s,
        reason=found.reason, body=json.dumps(dict(found.body)),
    )  # fmt: skip


def _upper(words: str) -> str:
    return words.upper().replace(" ", "_")
