"""Messages <-> values. What comes in is checked here: nobody is trusted."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from controller.changes.operations import Operation, Scale
from controller.changes.plans import Kept
from controller.fleet.pools import Registration, WorkerId
from controller.fleet.windows import Delta
from controller.fleet.workers import NAME
from controller.ledger.ledger import Record
from controller.server.intake import Pairs, RequestError, read_push
from placer.bounds import MOST_EXPERTS, MOST_LAYERS, MOST_PAIRS, MOST_TOP_K
from placer.errors import FileError, ModelError, RoutingError
from placer.files.documents import of_json
from placer.files.faults import first_fault
from placer.files.plans import LIMIT
from placer.files.specs import shape_of
from placer.messages import array
from placer.model import ModelShape
from placer.pace import Pace
from placer.placement import MOST_CELLS
from placer.plan import Hold, Infeasible, Plan
from placer.topology import MOST_GPUS
from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.worker import Pod, Worker

PHASES = {profile_pb2.PHASE_PREFILL: "prefill", profile_pb2.PHASE_DECODE: "decode"}
SLOTS = 2**20  # of all layers
LARGEST = 2**48  # of what is counted up: milliseconds of 9000 years; 20,000 of them still add up
Number = TypeVar("Number", int, float)
TEXT = 1000  # characters of what a worker says: it is kept and shown
SHAPE = 2**16  # of a model's sizes
MOST = 1000  # records in an answer
ANSWER = LIMIT // 2  # bytes of what is listed in an answer


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    """What a worker handed over. paces: by phase; trace: a message, see sampled.py; refused: why it
    is not to be counted, if so"""

    id: WorkerId
    sequence: int
    deltas: Sequence[Delta] = ()
    paces: Mapping[str, Pace] = field(default_factory=dict)
    trace: Any = None
    refused: str = ""


def worker_id(message: Any) -> WorkerId:
    return WorkerId(message.pool, message.engine, message.worker, message.incarnation)


def registration(message: Any) -> Registration:
    """Raises ModelError for a shape that is none, RoutingError for numbers that cannot be."""
    told = {name: getattr(message.worker, name) for name in Worker.__slots__}
    told |= {name: _line(told[name]) for name in ("model", "vocabulary")}
    worker = Worker(**told)
    _check_sizes(worker)
    numbers = ("epoch", "refused_epoch", "tokens", "dropped")
    for name in numbers:
        number(name, getattr(message, name))
    texts = ("actor", "api", "digest", "refused", "condition", "metrics")
    told = {name: getattr(message, name) for name in numbers}
    told |= {name: _line(getattr(message, name)) for name in texts}
    pod = Pod(*(_line(getattr(message, name)) for name in ("pod_name", "pod_uid", "node")))
    return Registration(
        worker_id(message.id), worker, _shape(message.shape, worker), pod=pod, **told
    )


def _check_sizes(worker: Worker) -> None:
    """Of what no planner could take, none is asked."""
    layers, experts, top_k, ranks = worker.layers, worker.experts, worker.top_k, worker.ep_size
    if not (
        0 < layers <= MOST_LAYERS
        and 0 < experts <= MOST_EXPERTS
        and 0 < top_k <= min(experts, MOST_TOP_K)
    ):
        raise ModelError(
            f"{worker.dims}, top-{top_k}: sizes are 1 to {MOST_LAYERS}, and top-k is 1 to "
            f"{MOST_TOP_K} and at most the experts"
        )
    if worker.slots * layers > SLOTS or worker.ep_rank >= ranks:
        raise ModelError(
            f"rank {worker.ep_rank} of {ranks}, {layers} layers of {worker.slots} slots: ranks "
            f"count from 0, and all slots are at most {SLOTS}"
        )
    pairs, cells = layers * experts**2, layers * experts * ranks
    if pairs > MOST_PAIRS or cells > MOST_CELLS or ranks > MOST_GPUS:
        raise ModelError(
            f"{worker.dims} on {ranks} ranks: layers x experts^2 are at most {MOST_PAIRS}, layers "
            f"x experts x ranks {MOST_CELLS}, and ranks {MOST_GPUS}"
        )


def number(name: str, value: Number) -> Number:
    if value > LARGEST:
        raise RoutingError(f"{name} is {value}: at most {LARGEST} can be counted")
    return value


def _line(text: str) -> str:
    return " ".join(text[:TEXT].split())


def _shape(text: str, worker: Worker) -> ModelShape | None:
    if not text:
        return None
    if len(text) > SHAPE:
        raise ModelError(f"the model's shape has {len(text)} characters: at most {SHAPE} are read")
    try:
        shape = shape_of(of_json(text, "the model's shape"))
    except FileError as error:
        fault = str(error).rpartition(": ")[0]  # whose remedy is for files
        raise ModelError(f"{fault}: write it as in a model file") from error
    except ValidationError as error:
        fault = first_fault(error)
        raise ModelError(f"the model's shape: {fault}: write it as in a model file") from error
    name = "".join(one if one.isprintable() else "?" for one in shape.name[:NAME])
    shape = replace(shape, name=name)
    if (shape.layers, shape.experts, shape.top_k) != (worker.layers, worker.experts, worker.top_k):
        raise ModelError(f"{shape.name} has {shape.dims} but the worker {worker.dims}")
    return shape


def push(data: bytes) -> Push:
    """Raises RequestError for bytes that are none; one that makes no sense says so itself."""
    message, pairs = read_push(data)
    id, sequence = worker_id(message.id), message.sequence
    try:
        number("sequence", sequence)
        _check_phases("counts", message.counts)
        _check_phases("steps", message.steps)
        deltas = [_delta(*one) for one in zip(message.counts, pairs, strict=True)]
        for delta in deltas:
            delta.check_pairs()
        trace = message.trace if message.HasField("trace") else None
        return Push(id, sequence, deltas, _paces(message), trace)
    except RoutingError as error:
        return Push(id, sequence, refused=str(error))


def _check_phases(name: str, parts: Sequence[Any]) -> None:
    phases = [part.phase for part in parts[: len(PHASES) + 1]]
    if len(set(phases)) < len(phases) or len(parts) > len(PHASES):
        raise RoutingError(f"{len(parts)} {name} in a push: it has one of each phase at most")


def _paces(message: Any) -> dict[str, Pace]:
    """By phase. Raises RoutingError for steps that make no sense."""
    window_s = number("window_s", message.window_s)
    return {
        phase(one.phase): Pace(number("steps", one.count), number("seconds", one.seconds), window_s)
        for one in message.steps
    }


def phase(value: int) -> str:
    """Raises RoutingError for one that is none."""
    for known, name in PHASES.items():
        if value == known:
            return name
    raise RoutingError(f"phase {value}: it is prefill or decode")


def _delta(counts: Any, pairs: Pairs) -> Delta:
    layers, experts = counts.layers, counts.experts
    for name in ("tokens", "sequences"):
        number(name, getattr(counts, name))
    sizes = 0 < layers <= MOST_LAYERS and 0 < experts <= MOST_EXPERTS
    if not (sizes and 0 < counts.top_k <= experts):
        raise RoutingError(f"{layers} layers x {experts} experts, top-{counts.top_k}: check them")
    transitions = coactivation = None
    if pairs.get("transitions") and pairs.get("coactivation"):
        transitions = array("transitions", pairs["transitions"], (layers - 1, experts, experts))
        coactivation = array("coactivation", pairs["coactivation"], (layers, experts, experts))
    return Delta(
        phase=phase(counts.phase),
        top_k=counts.top_k,
        tokens=counts.tokens,
        sequences=counts.sequences,
        load=array("load", counts.load, (layers, experts)),
        transitions=transitions,
        coactivation=coactivation,
    )


def fitting(messages: Iterable[Any], room: int) -> list[Any]:
    """The first of them, at least one, and no more than there is room for, in bytes."""
    found: list[Any] = []
    for message in messages:
        room -= message.ByteSize()
        if room < 0 and found:
            break
        found.append(message)
    return found


def listed(message: Callable[[Record[Any]], Any], records: Sequence[Record[Any]]) -> list[Any]:
    """As many as an answer holds."""
    return fitting(map(message, records), ANSWER)


def plan(record: Record[Kept], ledger_id: str, file: bytes = b"") -> Any:
    kept = record.value
    return placement_pb2.Plan(
        id=record.id, pool=record.pool, version=record.version,
        state=placement_pb2.PlanState.Value(f"PLAN_STATE_{_upper(kept.state)}"),
        reason=record.reason, digest=kept.digest, before=kept.before, moved=kept.moved,
        moved_bytes=kept.moved_bytes, gain=kept.gain, at_s=record.at_s, file=file,
        whole_gain=kept.whole_gain, ranks=kept.width, approver=kept.approver, epoch=kept.epoch,
        ledger_id=ledger_id, score_before_s=kept.before_s, score_after_s=kept.after_s,
        reasons=kept.reasons,
    )  # fmt: skip


def operation(record: Record[Operation]) -> Any:
    found = record.value
    phase = fleet_pb2.OperationPhase.Value(f"OPERATION_PHASE_{_upper(found.phase)}")
    return fleet_pb2.Operation(
        id=found.id, idempotency_key=found.key, pool=found.pool, kind=found.kind, phase=phase,
        plan_id=found.plan_id, progress=found.progress, reason=found.why or record.reason,
        begun_s=found.begun_s, changed_s=record.at_s, copied_bytes=found.copied_bytes,
        longest_pause_s=found.longest_pause_s, version=record.version, ranks=found.width,
        seconds=found.seconds, bytes=found.bytes,
        resize=resize(found.scale) if found.scale is not None else None, epoch=found.epoch,
    )  # fmt: skip


def pods(ready: Sequence[Any]) -> dict[str, int]:
    """GPUs of each, by uid. Raises RequestError for what cannot be."""
    found: dict[str, int] = {}
    for pod in ready:
        if not pod.uid or len(pod.uid) > NAME or pod.uid in found or pod.gpus > MOST_GPUS:
            raise RequestError(
                f"ready_pods: {pod.uid[:NAME]!r} with {pod.gpus} GPUs: each uid once, "
                f"and up to {MOST_GPUS} GPUs"
            )
        found[pod.uid] = pod.gpus or 1
    return found


def resize(change: Scale) -> Any:
    costs = {} if change.price is None else asdict(change.price)
    return fleet_pb2.Resize(ranks_before=change.before, ranks=change.ranks, **costs)


def record(found: Record[Any]) -> Any:
    reason = found.reason
    if not reason and isinstance(found.value, Operation):
        reason = found.value.course
    return fleet_pb2.Record(
        kind=found.kind, id=found.id, version=found.version, pool=found.pool, at_s=found.at_s,
        reason=reason, body=found.text,
    )  # fmt: skip


def outcome(answer: Plan | Hold | Infeasible) -> str:
    """In the API's words."""
    return {Plan: "plan", Hold: "hold", Infeasible: "infeasible"}[type(answer)]


def _upper(words: str) -> str:
    return words.upper().replace(" ", "_")
