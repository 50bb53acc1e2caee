"""Scenarios as people write them: pools, their traffic and hardware, and who looks after them."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from controller.config import Config, PoolPolicy, PoolSpec
from controller.engines.in_memory import MemoryEngine
from placer.errors import FileError, PlacerError
from placer.files.atomic import read_text
from placer.files.documents import of_yaml
from placer.files.faults import first_fault
from placer.files.routing import read_trace
from placer.files.specs import read_model, read_topology
from placer.model import ModelShape
from placer.names import lookup
from placer.placement import linear
from placer.topology import Topology
from placer.trace import Trace
from simulations.arrival_files import read_arrivals
from simulations.arrivals import Arrivals, diurnal, with_prefixes
from simulations.fleet import Incident, World
from simulations.modelled import Hardware, PoolModel
from simulations.routing import Routing, drawn, of_trace
from simulations.routing_fit.fit import fit
from simulations.routing_fit.router import Router
from simulations.state import Speeds
from simulations.written import (
    Drawn,
    DrawnRouting,
    HardwareSpeeds,
    LikeRouting,
    Pool,
    RouterRouting,
    Spec,
)

LIMIT = 2**20
EFFICIENCY = 0.5  # of peak arithmetic in what is no expert, as the score has it for experts
FAILURES, PREFIXES = 1, 2  # lots of their own
FILLED = 0.9  # of a GPU's memory, as vLLM takes it


@dataclass(frozen=True, slots=True)
class Slo:
    """Seconds to a request's first token, and to each of the others in the mean."""

    ttft_s: float
    tpot_s: float


class Scenario:
    """One file. controllers: names of those that are compared; scheduled: one of so many requests
    goes where the shipped scheduler says, the others where the fewest are"""

    def __init__(self, path: Path) -> None:
        """Raises FileError, which names the field."""
        text = read_text(path, LIMIT)
        try:
            self._spec = Spec.model_validate(of_yaml(text, str(path)) or {})
        except ValidationError as error:
            fault = first_fault(error, Spec, text)
            raise FileError(f"{path}: {fault}: see docs/simulations.md") from error
        self.path = path
        pools: dict[str, Pool] = {}
        for name, pool in self._spec.pools.items():
            told = pool.arrivals
            if isinstance(told, Drawn) and told.prompt + told.output > pool.context:
                raise FileError(
                    f"{path}: pools: {name}: {told.prompt:,} + {told.output:,} tokens in the mean"
                    f" are more than the context of {pool.context:,}: give a larger context, or"
                    " fewer tokens"
                )
            for number in range(pool.times):
                pools[f"{name}-{number}" if pool.times > 1 else name] = pool
        self._lots = {name: number for number, name in enumerate(pools)}
        self._spec = self._spec.model_copy(update={"pools": pools})
        for incident in self._spec.incidents:
            where = self._spec.pools.get(incident.pool)
            if where is None or incident.engine >= where.engines:
                raise FileError(
                    f"{path}: incidents: there is no engine {incident.engine} of {incident.pool}: "
                    "name one that there is, from 0"
                )

    @property
    def controllers(self) -> Sequence[str]:
        return list(self._spec.controllers)

    def part(self, seconds: float, scheduled: int = 0) -> "Scenario":
        """Its beginning. scheduled: in another form, unless 0"""
        found = copy(self)
        scheduled = scheduled or self.scheduled
        changes = {"seconds": min(seconds, self.seconds), "scheduled": scheduled}
        found._spec = self._spec.model_copy(update=changes)
        return found

    def check(self, controllers: Sequence[str]) -> None:
        """Raises FileError for one that is not there, with the nearest."""
        for one in controllers:
            lookup("controller", one, self._spec.controllers, FileError)

    @property
    def seconds(self) -> float:
        return self._spec.seconds

    @property
    def scheduled(self) -> int:
        return self._spec.scheduled

    def slo(self, pool: str) -> Slo:
        return Slo(**self._spec.pools[pool].slo.model_dump())

    def world(self, controller: str, seed: int) -> World:
        """Raises FileError for what cannot be."""
        spec = self._spec
        models = {name: self._model(name, seed) for name in spec.pools}
        incidents = [
            Incident(one.at_s, one.pool, f"engine-{one.engine}", one.lasts_s, one.kind)
            for one in spec.incidents
        ]
        for name, pool in spec.pools.items():
            incidents += self._upgrades(name, pool) + self._failures(name, pool, seed)
        pools = spec.pools.values()
        gpus = spec.capacity.gpus or sum(one.engines * (one.widest or one.ranks) for one in pools)
        if (begin := sum(one.engines * one.ranks for one in pools)) > gpus:
            raise FileError(
                f"{self.path}: capacity: gpus: {gpus} are fewer than the {begin} that engines have "
                "at the beginning: give more, or fewer ranks"
            )
        config = self._config(spec.controllers[controller])
        return World(models, incidents, config, (gpus, spec.capacity.comes_s), seed)

    def _model(self, name: str, seed: int) -> PoolModel:
        spec = self._spec.pools[name]
        try:
            return self._made(name, spec, seed)
        except FileError:
            raise
        except PlacerError as error:
            raise FileError(f"{self.path}: pools: {name}: {error}") from error

    def _made(self, name: str, spec: Pool, seed: int) -> PoolModel:
        shape, node = read_model(spec.model), read_topology(spec.topology)
        topology = node.resized(spec.ranks)
        slots = spec.slots or -(-shape.experts // spec.ranks) * spec.ranks
        start = linear(shape.layers, slots, shape.experts, spec.ranks, topology.nodes)
        speeds = _speeds(spec.speeds, shape, node, start.slots_per_gpu)
        hardware = Hardware(shape, node, speeds, self._policy(name, None).objective)
        engines = {
            f"engine-{at}": MemoryEngine(start, shape.expert_bytes) for at in range(spec.engines)
        }
        widest = max(spec.widest or spec.ranks, spec.ranks)
        lots = [seed, self._lots[name]]
        together = self._policy(name, None).asks_for_affinity
        arrivals, routing = self._arrivals(spec, lots), self._routing(spec, shape, lots, together)
        scheduled = self._spec.scheduled
        return PoolModel(name, hardware, routing, arrivals, engines, widest, scheduled)

    def _arrivals(self, spec: Pool, seed: Sequence[int]) -> Arrivals:
        told, seconds = spec.arrivals, self._spec.seconds
        if isinstance(told, Drawn):
            given = told.model_dump(exclude={"prefixes"})
            found = diurnal(seconds=seconds, longest=spec.context, seed=seed, **given)
            if told.prefixes is not None:
                given = told.prefixes.model_dump()
                lots = [*seed, PREFIXES]
                found = with_prefixes(found, longest=spec.context, seed=lots, **given)
        else:
            path = self.path.parent / told.trace
            found = read_arrivals(path, spec.context, told.holes).times(told.times)
        return found.between(0.0, seconds)

    def _routing(
        self, spec: Pool, shape: ModelShape, seed: Sequence[int], together: bool
    ) -> Routing:
        told = spec.routing
        if isinstance(told, DrawnRouting):
            return drawn(shape, seed=seed, **told.model_dump())
        if isinstance(told, LikeRouting):
            router = fitted(self.path.parent / told.like, read_model(told.of))
            return routed(router, shape, told.turn_s, tuple(seed), together)
        if isinstance(told, RouterRouting):
            router = Router(**told.router.model_dump())
            return routed(router, shape, told.turn_s, tuple(seed), together)
        trace = _trace(self.path.parent / told.routing, shape)
        return of_trace(trace, told.parts, told.every_s, together)

    def _upgrades(self, name: str, pool: Pool) -> list[Incident]:
        if (told := pool.upgrades) is None:
            return []
        return [
            Incident(
                begin_s + engine * told.lasts_s, name, f"engine-{engine}", told.lasts_s, "upgrade"
            )
            for begin_s in np.arange(told.every_s / 2, self.seconds, told.every_s).tolist()
            for engine in range(pool.engines)
        ]

    def _failures(self, name: str, pool: Pool, seed: int) -> list[Incident]:
        if (told := pool.failures) is None:
            return []
        rng = np.random.default_rng([seed, self._lots[name], FAILURES])
        count = rng.poisson(told.per_day * self.seconds / 86_400)
        moments = np.sort(rng.random(count) * self.seconds).round()
        which = rng.integers(pool.engines, size=count)
        return [
            Incident(at_s, name, f"engine-{engine}", told.lasts_s)
            for at_s, engine in zip(moments.tolist(), which.tolist(), strict=True)
        ]

    def _policy(self, pool: str, of_all: PoolSpec | None) -> PoolPolicy:
        spec = self._spec.pools[pool]
        own = spec.policy.on(PoolPolicy(read_topology(spec.topology)))
        return of_all.on(own) if of_all is not None else own

    def _config(self, of_all: PoolSpec | None) -> Config | None:
        if of_all is None:
            return None
        pools: Mapping[str, PoolPolicy] = {
            name: self._policy(name, of_all) for name in self._spec.pools
        }
        for name, policy in pools.items():
            if (sizes := policy.autoscale) is not None:
                spec = self._spec.pools[name]
                most = min(sizes.most, spec.widest or spec.ranks)
                pools = {**pools, name: replace(policy, autoscale=replace(sizes, most=most))}
        return Config(next(iter(pools.values())), pools, self._spec.every_s)


@lru_cache(4)  # asked for by all controllers
def routed(
    router: Router, shape: ModelShape, turn_s: float, seed: tuple[int, ...], together: bool
) -> Routing:
    return router.routing(shape, turn_s, seed, together)


@lru_cache  # asked for by all pools and controllers
def fitted(path: Path, model: ModelShape) -> Router:
    return fit(_trace(path, model))


def _trace(path: Path, model: ModelShape) -> Trace:
    """Raises FileError for another model's."""
    trace = read_trace(path, model)
    if (trace.layers, trace.top_k) != (model.layers, model.top_k):
        raise FileError(
            f"{path} is of {trace.layers} layers, top-{trace.top_k}, and {model.name} of "
            f"{model.layers}, top-{model.top_k}: give the model's own"
        )
    return trace


def _speeds(spec: HardwareSpeeds, shape: ModelShape, node: Topology, slots: int) -> Speeds:
    """Where the scenario says nothing, of hardware and model."""
    gpu, weights = node.gpu, slots * shape.layers * shape.expert_bytes + shape.other_bytes
    read_s, token_s, kv_tokens = spec.dense_read_s, spec.dense_token_s, spec.kv_tokens
    if read_s is None:
        read_s = shape.other_bytes / gpu.hbm_bytes_per_s
    if token_s is None:
        token_s = shape.other_bytes / (gpu.flops_16bit * EFFICIENCY)  # 2 FLOP a weight of 2 bytes
    if kv_tokens is None:
        kv_tokens = int((FILLED * gpu.hbm_bytes - weights) / spec.kv_token_bytes)
        if kv_tokens < 1:
            raise FileError(
                f"{shape.name} needs {weights / 1e9:,.0f} GB of a GPU's {gpu.hbm_bytes / 1e9:,.0f} "
                "GB: use more ranks, or GPUs with more memory"
            )
    given: dict[str, Any] = {
        "overhead_s": spec.overhead_s, "dense_read_s": read_s, "dense_token_s": token_s,
        "kv_token_s": spec.kv_token_bytes / gpu.hbm_bytes_per_s, "kv_tokens": kv_tokens,
        "token_budget": spec.token_budget, "switch_s": spec.switch_s,
    }  # fmt: skip
    return Speeds(**given)
