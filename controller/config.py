"""What an operator may set, pool by pool; docs/controller.md has the table."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from controller.size_settings import Autoscale, AutoscaleSpec, Spec
from placer.errors import FileError, PlacerError
from placer.files.atomic import read_text
from placer.files.documents import of_yaml
from placer.files.faults import first_fault
from placer.files.specs import TopologySpec, read_topology
from placer.objective import STEP_TOKENS_PER_GPU, Dispatch, Objective
from placer.optimizers import known as known_optimizer
from placer.topology import Topology

LIMIT = 2**20
MOST_REQUESTS = 100_000
Mode = Literal["advisory", "automatic"]


@dataclass(frozen=True, slots=True)
class Hours:
    """A time of every day, UTC; past midnight if it ends before it begins."""

    begin_minute: int
    end_minute: int

    def contain(self, now: float) -> bool:
        at = datetime.fromtimestamp(now, UTC)
        minute = at.hour * 60 + at.minute
        if self.begin_minute <= self.end_minute:
            return self.begin_minute <= minute < self.end_minute
        return minute >= self.begin_minute or minute < self.end_minute

    def __str__(self) -> str:
        ends = (self.begin_minute, self.end_minute)
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in ends)


@dataclass(frozen=True, slots=True)
class Traces:
    """Which requests are sampled token by token. They tell what users wrote.

    requests:  kept in each phase, at most; 0: none is sampled
    kept_s:    how long
    token_ids: whether with their vocabulary ids
    """

    requests: int = 0
    kept_s: float = 900.0
    token_ids: bool = False


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """How one pool is looked after.

    mode:             ``advisory`` proposes and waits for approval; ``automatic`` acts
    topology:         its hardware, of any size: a pool's width is its engines'
    nodes:            that an engine's ranks stand in
    phase:            the traffic that plans are made for: ``prefill``, ``decode`` or both
    window_s:         how far back that traffic reaches
    least_tokens:     fewer in the window are no ground for a decision
    confirmations:    decisions in a row that must want to move
    cooldown_s:       after a change, before the next
    bytes_per_minute: of weights copied in an engine; None: as fast as ``rank_bytes`` allows; 0
                      freezes
    rank_bytes:       in flight to or from a rank
    scratch_slots:    experts that a rank can hold beside its slots
    hours:            when changes may begin; empty: always
    traces:           requests that are sampled, to judge plans on and for who may read them
    control:          share of requests that fronts send by load alone; None: as each is told
    autoscale:        how its size follows its load; None: it does not
    """

    topology: Topology
    mode: Mode = "advisory"
    nodes: int | None = None
    optimizer: str = "joint"
    dispatch: Dispatch = "allgather"
    phase: Literal["prefill", "decode", "mixed"] = "mixed"
    window_s: float = 300.0
    least_tokens: int = 10_000
    confirmations: int = 2
    cooldown_s: float = 300.0
    overlap: float = Objective().overlap
    guard: float = Objective().guard
    max_moved: float = Objective().max_moved
    horizon_s: float = 600.0
    survive_node: bool = False
    bytes_per_minute: int | None = None
    rank_bytes: int = 2**30
    scratch_slots: int = 2
    hours: tuple[Hours, ...] = ()
    traces: Traces = Traces()
    control: float | None = None
    autoscale: Autoscale | None = None

    def hardware(self, ranks: int) -> Topology:
        with told_in_settings():
            return self.topology.resized(ranks, self.nodes)

    @property
    def objective(self) -> Objective:
        return Objective(
            dispatch=self.dispatch,
            tokens_per_gpu=STEP_TOKENS_PER_GPU[self.phase],
            survive_node=self.survive_node,
            horizon_s=self.horizon_s,
            max_moved=self.max_moved,
            overlap=self.overlap,
            guard=self.guard,
        )

    @property
    def asks_for_affinity(self) -> bool:
        """Whether it matters which experts tokens use together: how they travel says."""
        return self.dispatch != "allgather"

    @property
    def frozen(self) -> str:
        """Why nothing may move; empty if it may."""
        return "bytes_per_minute is 0: frozen" if self.bytes_per_minute == 0 else ""

    def closed(self, now: float) -> str:
        """Why no change may begin now, in unix seconds; empty if one may."""
        if self.frozen:
            return self.frozen
        if self.hours and not any(hours.contain(now) for hours in self.hours):
            return f"outside the hours of change, {', '.join(map(str, self.hours))} UTC"
        return ""


@dataclass(frozen=True, slots=True)
class Config:
    """Pools that are not named are looked after as ``default``.

    every_s: between two decisions; retention_days: of what the ledger keeps
    """

    default: PoolPolicy
    pools: Mapping[str, PoolPolicy] = field(default_factory=dict)
    every_s: float = 30.0
    retention_days: float = 30.0

    def of(self, pool: str) -> PoolPolicy:
        return self.pools.get(pool, self.default)


TOPOLOGY = "h100"
DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(PoolPolicy)}
DEFAULTS["topology"] = TOPOLOGY


def _given(spec: BaseModel, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What is said. What is null is as if nobody had ever said anything else."""
    said = spec.model_dump(exclude_unset=True)
    return {key: defaults[key] if value is None else value for key, value in said.items()}


class _TracesSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    requests: int | None = Field(default=None, ge=0, le=MOST_REQUESTS)
    kept_s: float | None = Field(default=None, gt=0, le=1e9)
    token_ids: bool | None = None

    def on(self, traces: Traces) -> Traces:
        return replace(traces, **_given(self, asdict(Traces())))


# A preset's name or a file's, or what such a file says; told apart so that one fault is told.
_Hardware = Annotated[
    Annotated[str, Tag("name")] | Annotated[TopologySpec, Tag("file")],
    Discriminator(lambda found: "file" if isinstance(found, dict | TopologySpec) else "name"),
]


class PoolSpec(BaseModel):
    """One pool's settings, as they are written."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    mode: Mode | None = None
    topology: _Hardware | None = None
    nodes: int | None = Field(default=None, ge=1)
    optimizer: str | None = None
    dispatch: Dispatch | None = None
    phase: Literal["prefill", "decode", "mixed"] | None = None
    window_s: float | None = Field(default=None, gt=0)
    least_tokens: int | None = Field(default=None, ge=1)
    confirmations: int | None = Field(default=None, ge=1)
    cooldown_s: float | None = Field(default=None, ge=0)
    overlap: float | None = Field(default=None, ge=0, le=1)
    guard: float | None = Field(default=None, ge=0, le=1)
    max_moved: float | None = Field(default=None, ge=0, le=1)
    horizon_s: float | None = Field(default=None, ge=0, le=1e12)
    survive_node: bool | None = None
    bytes_per_minute: int | None = Field(default=None, ge=0)
    rank_bytes: int | None = Field(default=None, ge=1)
    scratch_slots: int | None = Field(default=None, ge=0)
    hours: list[str] | None = None
    traces: _TracesSpec | None = None
    control: float | None = Field(default=None, ge=0, le=1)
    autoscale: AutoscaleSpec | None = None

    def on(self, policy: PoolPolicy) -> PoolPolicy:
        """What is said here, and the rest as in ``policy``."""
        given = _given(self, DEFAULTS)
        if self.traces is not None:
            given["traces"] = self.traces.on(policy.traces)
        if isinstance(self.topology, TopologySpec):
            given["topology"] = self.topology.topology(Path(self.topology.preset))
        elif "topology" in given:
            given["topology"] = read_topology(given["topology"])
        if "hours" in given:
            given["hours"] = tuple(_hours(text) for text in given["hours"])
        if self.autoscale is not None:
            given["autoscale"] = self.autoscale.checked()
        if "optimizer" in given:
            known_optimizer(given["optimizer"])
        return replace(policy, **given)


class _ConfigSpec(Spec):
    every_s: float = Field(default=30.0, gt=0)
    retention_days: float = Field(default=30.0, gt=0)
    default: PoolSpec = PoolSpec()
    pools: dict[str, PoolSpec] = Field(default={})


def read_config(path: Path | None) -> Config:
    """The file's settings, or those of a first installation: advisory everywhere."""
    text = read_text(path, LIMIT) if path else ""
    data = of_yaml(text, str(path))
    try:
        spec = _ConfigSpec.model_validate({} if data is None else data)
    except ValidationError as error:
        fault = first_fault(error, _ConfigSpec, text)
        raise FileError(f"{path}: {fault}: see docs/controller.md") from error
    default = spec.default.on(PoolPolicy(read_topology(TOPOLOGY)))
    pools = {name: pool.on(default) for name, pool in spec.pools.items()}
    return Config(default, pools, spec.every_s, spec.retention_days)


def _hours(text: str) -> Hours:
    try:
        begin, end = (datetime.strptime(part.strip(), "%H:%M") for part in text.split("-"))
    except ValueError as error:
        raise FileError(f"hours {text!r}: write them as 22:00-06:00, in UTC") from error
    if begin == end:
        raise FileError(f"hours {text!r} end as they begin: leave them out for the whole day")
    return Hours(begin.hour * 60 + begin.minute, end.hour * 60 + end.minute)


# What planning advises in words of the command line, where that is not the name of a setting. That
# a GPU may hold an expert twice is none.
_ADVICE = {
    ", or --allow-duplicates": "",
    "give a trace, or use --optimizer": "use a dispatch other than allgather, or optimizer",
    "plan without --uneven, or with --optimizer": "use optimizer",
    "use --redundant": "set the engine's num_redundant_experts to",
    "--redundant": "num_redundant_experts",
}


def in_settings(text: str) -> str:
    """Advice as whoever runs a controller can follow it: "survive_node", not "--survive-node"."""
    for words, ours in _ADVICE.items():
        text = text.replace(words, ours)

    def setting(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        return name if name in PoolSpec.model_fields else found[0]

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", setting, text)


@contextmanager
def told_in_settings() -> Iterator[None]:
    """Errors of planning in the words of settings."""
    try:
        yield
    except PlacerError as error:
        raise type(error)(in_settings(str(error))) from error
