"""What it wins to send requests home by tables: sampled ones against those of the control group,
which went by load alone.

GPUs visited tell what choosing a rank wins, and distinct experts of a step what choosing an engine
wins: inside one engine all ranks' experts are read for all ranks' tokens."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import hypot

import numpy as np

from controller.fleet.distinct import FEWEST, at_once, distinct
from controller.fleet.pools import Pool
from controller.fleet.token_tables import Told
from controller.fleet.traces import Request, SampledRequests
from placer.arrays import BoolArray, FloatArray, IntArray
from placer.clock import Clock
from placer.cost.serving import LayerMap, serve, token_hash
from placer.marks import Mark
from placer.placement import Placement

EVERY_S = 30.0
SURE = 2.0  # standard errors
WORTH = 0.005  # of the remote traffic: what wins less does not pay
Stands = Callable[[Pool], Awaitable[Placement]]
Foretold = Callable[[Sequence[Request]], Mapping[Request, Told]]
NAMES = {Mark.TABLES: "tables", Mark.LOAD: "load"}


@dataclass(frozen=True, slots=True)
class Homed:
    """Requests of one group.

    local:  share of activations that their own GPU can serve (LAR)
    remote: other GPUs that a token is sent to, mean over layers; error: its standard error
    distinct: experts a layer that a step reads for requests of this group alone, as
            ``controller.fleet.distinct`` has it, and its standard error; None if nobody can tell
    predicted, predicted_remote, predicted_distinct: ``local``, ``remote`` and ``distinct``, as
            tables of before they came foretold them; None if there were none
    """

    requests: int
    local: float
    remote: float
    error: float
    predicted: float | None = None
    distinct: float | None = None
    distinct_error: float = 0.0
    predicted_remote: float | None = None
    predicted_distinct: float | None = None


@dataclass(frozen=True, slots=True)
class Homing:
    """step: requests of which ``distinct`` is, 0 if nobody measured steps; pays: False once it is
    sure that it wins nothing"""

    groups: Mapping[str, Homed] = field(default_factory=dict)
    reason: str = "no request says how its rank was chosen: none came through a front"
    pays: bool = True
    step: int = 0


def judged(
    requests: Iterable[Request],
    placement: Placement,
    step: int = 0,
    foretold: Mapping[Request, Told] | None = None,
) -> Homing:
    """By the requests that were served under ``placement``.

    step: requests that an engine decodes at once; foretold: of some requests
    """
    by_mark: dict[Mark, list[Request]] = {}
    for one in requests:
        if one.mark and one.plan == placement.digest and 0 <= one.rank < placement.gpus:
            by_mark.setdefault(one.mark, []).append(one)
    if not by_mark:
        return Homing()
    groups = {NAMES[mark]: homed(them, placement, foretold) for mark, them in by_mark.items()}
    few = [name for name in NAMES.values() if _count(groups, name) < FEWEST]
    if few:
        counts = " and ".join(f"{_count(groups, name):,} by {name}" for name in NAMES.values())
        return Homing(groups, f"{counts} were sampled: {FEWEST} of each tell what tables win")
    engines = {mark: _by_engine(them) for mark, them in by_mark.items()}
    # Where load alone sent them tells nothing of them: all engines are one.
    engines[Mark.LOAD] = [[one for them in engines[Mark.LOAD] for one in them]]
    for mark, name in NAMES.items():
        if (read := distinct(engines[mark], step)) is not None:
            groups[name] = replace(groups[name], distinct=read[0], distinct_error=read[1])
        if foretold and (read := _foretold(engines[mark], step, foretold)) is not None:
            groups[name] = replace(groups[name], predicted_distinct=read[0])
    ours, plain = groups["tables"], groups["load"]
    foreseen = "" if ours.predicted is None else f" ({ours.predicted:.1%} foretold)"
    won, sure = _won(ours.remote, plain.remote, ours.error, plain.error)
    told = (
        f"{ours.local:.1%}{foreseen} of activations at home by tables and {plain.local:.1%} by "
        f"load; {won:+.1%} of the remote traffic is saved, +-{sure:.1%}"
        f"{_told(ours.predicted_remote, plain.predicted_remote)}"
    )
    pays = won + sure >= WORTH
    if ours.distinct is not None and plain.distinct is not None:
        won, sure = _won(ours.distinct, plain.distinct, ours.distinct_error, plain.distinct_error)
        told += (
            f"; {ours.distinct:.1f} and {plain.distinct:.1f} experts a layer are read in a step of "
            f"{step} requests, {won:+.1%} is saved, +-{sure:.1%}"
            f"{_told(ours.predicted_distinct, plain.predicted_distinct)}"
        )
        pays |= len(engines[Mark.TABLES]) > 1 and won + sure >= WORTH
    if not pays:
        told += ": it does not pay, requests go by load"
    return Homing(groups, told, pays, step)


def homed(
    requests: list[Request], placement: Placement, foretold: Mapping[Request, Told] | None = None
) -> Homed:
    """Each request counts by its tokens; the errors are of a ratio of sums."""
    local, remote = zip(*(_of_request(one, placement) for one in requests), strict=True)
    tokens: FloatArray = np.array([one.tokens for one in requests], dtype=np.float64)
    mean = float(np.sum(remote) / tokens.sum())
    off = np.array(remote) - mean * tokens
    spread = float(np.sqrt((off**2).sum() * len(tokens) / max(len(tokens) - 1, 1)))
    found = Homed(
        len(requests), float(np.sum(local) / tokens.sum()), mean, spread / float(tokens.sum())
    )
    known = [(one.tokens, foretold[one]) for one in requests if foretold and one in foretold]
    if not known:
        return found
    times, told = zip(*known, strict=True)
    return replace(
        found,
        predicted=float(np.average([one.local for one in told], weights=times)),
        predicted_remote=float(np.average([one.remote for one in told], weights=times)),
    )


class Homings:
    """What is known of each pool, judged anew now and then, beside the loop."""

    def __init__(self, traces: SampledRequests, clock: Clock) -> None:
        self.of: dict[str, Homing] = {}
        self._traces, self._clock, self._due_s = traces, clock, 0.0
        self._beside = ThreadPoolExecutor(1, "homing")

    async def look(self, pools: Iterable[Pool], stands: Stands, foretold: Foretold) -> None:
        """stands: the map of a pool's engines. Raises PlacerError if one is not known. foretold: as
        ``TokenTables.foretold``"""
        if (now_s := self._clock.monotonic()) < self._due_s:
            return
        self._due_s = now_s + EVERY_S
        for pool in list(pools):
            found = [one for _, one in self._traces.of(pool.name, pool.model) if one.mark]
            if not found:
                self.of.pop(pool.name, None)
                continue
            running = asyncio.get_running_loop()
            placement, group = await stands(pool), pool.group()
            told = found, placement, at_once(group) if group else 0, foretold(found)
            self.of[pool.name] = await running.run_in_executor(self._beside, judged, *told)


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


def _foretold(
    engines: Sequence[Sequence[Request]], step: int, told: Mapping[Request, Told]
) -> tuple[float, float] | None:
    """``distinct`` of the requests of which something was foretold."""
    known = [[one for one in them if one in told] for them in engines]
    return distinct(known, step, lambda one: told[one].unused)


def _told(ours: float | None, plain: float | None) -> str:
    """What was foretold of a saving."""
    return f" ({1 - ours / plain:+.1%} foretold)" if ours is not None and plain else ""


def _count(groups: Mapping[str, Homed], name: str) -> int:
    return groups[name].requests if name in groups else 0


def _by_engine(requests: Iterable[Request]) -> list[list[Request]]:
    """What each engine decoded."""
    found: dict[str, list[Request]] = {}
    for one in requests:
        if one.phase != "prefill":
            found.setdefault(one.engine, []).append(one)
    return list(found.values())


def _won(ours: float, plain: float, *errors: float) -> tuple[float, float]:
    """Share of ``plain`` that is saved, and how far that may be off."""
    if not plain:
        return 0.0, 0.0
    return 1 - ours / plain, SURE * hypot(*errors) / plain
