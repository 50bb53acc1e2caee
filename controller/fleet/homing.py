"""What it wins to send requests home by tables: sampled ones against those of the control group,
which went by load alone."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from controller.fleet.pools import Pool
from controller.fleet.traces import Request, SampledRequests
from placer.arrays import BoolArray, FloatArray, IntArray
from placer.clock import Clock
from placer.cost.serving import LayerMap, serve, token_hash
from placer.marks import Mark
from placer.placement import Placement

EVERY_S = 30.0
FEWEST = 30  # requests of either group, before anything is said
SURE = 2.0  # standard errors
WORTH = 0.005  # of the remote traffic: what wins less does not pay
Stands = Callable[[Pool], Awaitable[Placement]]
NAMES = {Mark.TABLES: "tables", Mark.LOAD: "load"}


@dataclass(frozen=True, slots=True)
class Homed:
    """Requests of one group.

    local:  share of activations that their own GPU can serve (LAR)
    remote: other GPUs that a token is sent to, mean over layers; error: its standard error
    """

    requests: int
    local: float
    remote: float
    error: float


@dataclass(frozen=True, slots=True)
class Homing:
    """pays: False once it is sure that it wins nothing"""

    groups: Mapping[str, Homed] = field(default_factory=dict)
    reason: str = "no request says how its rank was chosen: none came through a front"
    pays: bool = True


def judged(requests: Iterable[Request], placement: Placement) -> Homing:
    """By the requests that were served under ``placement``."""
    by_mark: dict[Mark, list[Request]] = {}
    for one in requests:
        if one.mark and one.plan == placement.digest and 0 <= one.rank < placement.gpus:
            by_mark.setdefault(one.mark, []).append(one)
    groups = {NAMES[mark]: homed(them, placement) for mark, them in by_mark.items()}
    if not groups:
        return Homing()
    few = [name for name in NAMES.values() if _count(groups, name) < FEWEST]
    if few:
        counts = " and ".join(f"{_count(groups, name):,} by {name}" for name in NAMES.values())
        return Homing(groups, f"{counts} were sampled: {FEWEST} of each tell what tables win")
    ours, plain = groups["tables"], groups["load"]
    won = 1 - ours.remote / plain.remote if plain.remote else 0.0
    relative = float(np.hypot(ours.error, plain.error)) / plain.remote if plain.remote else 0.0
    told = (
        f"{ours.local:.1%} of activations at home by tables and {plain.local:.1%} by load; "
        f"{won:+.1%} of the remote traffic is saved, +-{SURE * relative:.1%}"
    )
    if won + SURE * relative < WORTH:
        return Homing(groups, f"{told}: it does not pay, requests go by load", pays=False)
    return Homing(groups, told)


def homed(requests: list[Request], placement: Placement) -> Homed:
    """Each request counts by its tokens; the errors are of a ratio of sums."""
    local, remote = zip(*(_of_request(one, placement) for one in requests), strict=True)
    tokens: FloatArray = np.array([one.tokens for one in requests], dtype=np.float64)
    mean = float(np.sum(remote) / tokens.sum())
    off = np.array(remote) - mean * tokens
    spread = float(np.sqrt((off**2).sum() * len(tokens) / max(len(tokens) - 1, 1)))
    return Homed(
        len(requests), float(np.sum(local) / tokens.sum()), mean, spread / float(tokens.sum())
    )


class Homings:
    """What is known of each pool, judged anew now and then, beside the loop."""

    def __init__(self, traces: SampledRequests, clock: Clock) -> None:
        self.of: dict[str, Homing] = {}
        self._traces, self._clock, self._due_s = traces, clock, 0.0
        self._beside = ThreadPoolExecutor(1, "homing")

    async def look(self, pools: Iterable[Pool], stands: Stands) -> None:
        """stands: the map of a pool's engines. Raises PlacerError if one is not known."""
        if (now_s := self._clock.monotonic()) < self._due_s:
            return
        self._due_s = now_s + EVERY_S
        for pool in list(pools):
            found = [one for _, one in self._traces.of(pool.name, pool.model) if one.mark]
            if not found:
                self.of.pop(pool.name, None)
                continue
            running = asyncio.get_running_loop()
            placement = await stands(pool)
            self.of[pool.name] = await running.run_in_executor(
                self._beside, judged, found, placement
            )


def _of_request(one: Request, placement: Placement) -> tuple[float, float]:
    """Of its tokens: shares of local activations, and other GPUs visited, each summed; the mean of
    layers."""
    ids, node_of = one.expert_ids, placement.node_of_gpu
    here: IntArray = np.full(one.tokens, one.rank)
    hashed, rows = token_hash(np.arange(one.tokens)), np.arange(one.tokens)[:, None]
    local = remote = 0.0
    for layer in range(placement.layers):
        where = LayerMap.of(placement, layer)
        gpu = serve(ids[:, layer].astype(np.intp), where, hashed, here, node_of)
        visited: BoolArray = np.zeros((one.tokens, placement.gpus), dtype=bool)
        visited[rows, gpu] = True
        visited[:, one.rank] = False
        local += float((gpu == one.rank).mean(axis=1).sum())
        remote += float(visited.sum())
    return local / placement.layers, remote / placement.layers


def _count(groups: Mapping[str, Homed], name: str) -> int:
    return groups[name].requests if name in groups else 0
