"""What a scenario's file may say, field by field; docs/simulations.md explains it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from controller.config import PoolSpec


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class DrawnPrefixes(_Strict):
    """What simulations.arrivals.with_prefixes is given."""

    count: int = Field(default=100, ge=1, le=100_000)
    tokens: int = Field(default=1024, ge=1)
    share: float = Field(default=0.8, ge=0, le=1)
    zipf: float = Field(default=1.0, ge=0, le=5)


class Drawn(_Strict):
    """What simulations.arrivals.diurnal is given, and prefixes."""

    per_s: float = Field(gt=0, le=1e6)
    swing: float = Field(default=0.0, ge=0, le=1)
    bursts: float = Field(default=0.0, ge=0)
    prompt: int = Field(default=1000, ge=1)
    output: int = Field(default=200, ge=1)
    prefixes: DrawnPrefixes | None = None


class Recorded(_Strict):
    """times: each request comes so often; holes: hours without one are meant"""

    trace: Path
    times: int = Field(default=1, ge=1)
    holes: bool = False


class DrawnRouting(_Strict):
    """What simulations.routing.drawn is given."""

    skew: float = Field(default=1.0, ge=0, le=5)
    own: float = Field(default=0.5, ge=0, le=1)
    domains: int = Field(default=1, ge=1, le=64)
    turn_s: float = Field(default=0.0, ge=0)


class RecordedRouting(_Strict):
    routing: Path
    parts: int = Field(default=1, ge=1)
    every_s: float = Field(default=600.0, gt=0)


class LikeRouting(_Strict):
    """Drawn by a router fitted to a trace (simulations.routing_fit). of: the trace's model; turn_s:
    for all of the trace's drift, once; 0: as it is in the mean"""

    like: Path
    of: str
    turn_s: float = Field(default=0.0, ge=0)


class WrittenRouter(_Strict):
    """simulations.routing_fit.router.Router's numbers of endless traffic."""

    skew: float = Field(default=0.0, ge=0, le=5)
    variety: float = Field(default=0.0, ge=0, le=100)
    shared: float = Field(default=0.0, ge=0, le=1)
    clusters: int = Field(default=1, ge=1, le=64)
    drift: float = Field(default=0.0, ge=0, le=1e6)
    together: float = Field(default=0.0, ge=0, le=100)
    factors: float = Field(default=1.0, ge=1, le=100)
    stays: float = Field(default=0.0, ge=0, le=1)


class RouterRouting(_Strict):
    """Drawn by a router of these numbers. turn_s: as of ``LikeRouting``"""

    router: WrittenRouter
    turn_s: float = Field(default=0.0, ge=0)


class HardwareSpeeds(_Strict):
    """What of simulations.state.Speeds is not taken from the hardware."""

    overhead_s: float = Field(default=0.004, ge=0)
    dense_read_s: float | None = Field(default=None, ge=0)
    dense_token_s: float | None = Field(default=None, ge=0)
    kv_token_bytes: int = Field(default=70_000, ge=1)
    kv_tokens: int | None = Field(default=None, ge=1)
    token_budget: int = Field(default=2048, ge=1)
    switch_s: float = Field(default=0.1, ge=0)


class Objectives(_Strict):
    ttft_s: float = Field(default=2.0, gt=0)
    tpot_s: float = Field(default=0.1, gt=0)


class Failures(_Strict):
    """Failures of engines, each with all that it has. per_day: in the mean, of the whole pool"""

    per_day: float = Field(gt=0, le=1e4)
    lasts_s: float = Field(default=900.0, gt=0)


class Upgrades(_Strict):
    """One engine after another, first after half of ``every_s``."""

    every_s: float = Field(gt=0)
    lasts_s: float = Field(default=300.0, gt=0)


class Pool(_Strict):
    """times: so many pools like it, each with its own lots, by number"""

    times: int = Field(default=1, ge=1, le=4096)
    model: str
    topology: str = "h100"
    engines: int = Field(default=1, ge=1, le=4096)
    ranks: int = Field(ge=1)
    widest: int | None = Field(default=None, ge=1)
    slots: int | None = Field(default=None, ge=1)
    context: int = Field(default=131_072, ge=2)
    speeds: HardwareSpeeds = HardwareSpeeds()
    arrivals: Drawn | Recorded
    routing: DrawnRouting | RecordedRouting | LikeRouting | RouterRouting = DrawnRouting()
    slo: Objectives = Objectives()
    failures: Failures | None = None
    upgrades: Upgrades | None = None
    policy: PoolSpec = PoolSpec()


class WrittenIncident(_Strict):
    at_s: float = Field(ge=0)
    pool: str
    engine: int = Field(ge=0)
    lasts_s: float = Field(gt=0)
    kind: Literal["crash", "upgrade", "drain"] = "crash"


class Stock(_Strict):
    gpus: int | None = Field(default=None, ge=1)
    comes_s: float = Field(default=60.0, ge=0)


class Spec(_Strict):
    seconds: float = Field(gt=0, le=3e6)
    scheduled: int = Field(default=1, ge=1)
    every_s: float = Field(default=30.0, gt=0)
    pools: dict[str, Pool] = Field(min_length=1)
    controllers: dict[str, PoolSpec | None] = Field(min_length=1)
    incidents: list[WrittenIncident] = []
    capacity: Stock = Stock()
