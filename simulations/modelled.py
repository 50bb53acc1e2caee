"""A pool of modelled engines: what the shipped controller and scheduler see and change of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controller.engines.in_memory import MemoryEngine
from controller.fleet.pools import Registration, WorkerId
from controller.fleet.windows import Delta
from controller.fleet.workers import Fleet
from controller.migration.commands import Discard
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Decision, Request
from controller.router.scheduling.scheduler import BLOCK_TOKENS, Scheduler
from placer.arrays import FloatArray
from placer.cost.balance import by_layer, rank_load
from placer.cost.requests import Costs, costs_of
from placer.model import ModelShape
from placer.objective import Objective
from placer.pace import Pace
from placer.placement import Placement, linear
from placer.problem import Problem
from placer.profile import Profile
from placer.topology import Topology
from placer.worker import Worker
from simulations.arrivals import Arrivals
from simulations.kernels import BEGAN, NOBODY
from simulations.routing import Routing
from simulations.serving import Serving
from simulations.state import Speeds
from simulations.step_seconds import grid

FORGETS = 2**62  # an epoch after all others


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a pool runs on, and how. topology: of one engine, at any width"""

    model: ModelShape
    topology: Topology
    speeds: Speeds
    objective: Objective


@dataclass(eq=False)
class _Tables:
    """Seconds of a step's experts and balancedness, by placement and moment; kept, since engines
    share them, whose GPUs mostly hold the same in some slots or others.

    in_order: digests of placements, to those of placements like them
    """

    hardware: Hardware
    routing: Routing
    known: dict[tuple[str, int], tuple[FloatArray, float]] = field(default_factory=dict)
    in_order: dict[str, str] = field(default_factory=dict)
    profiles: dict[int, Profile] = field(default_factory=dict)

    def of(self, placement: Placement, moment: int) -> tuple[FloatArray, float]:
        if placement.digest not in self.in_order:
            self.in_order[placement.digest] = placement.in_order.digest
        key = self.in_order[placement.digest], moment
        if key not in self.known:
            placement = placement.in_order
            problem = self.problem(placement, moment)
            balance = by_layer(rank_load(problem.profile.load, placement))
            seconds = grid(problem, placement)
            self.known[key] = seconds, float(balance.mean())
        return self.known[key]

    def problem(self, placement: Placement, moment: int) -> Problem:
        hardware = self.hardware
        if moment not in self.profiles:
            self.profiles[moment] = self.routing.profile(moment, hardware.model.top_k)
        return Problem(
            model=hardware.model,
            topology=hardware.topology.resized(placement.gpus),
            profile=self.profiles[moment],
            slots=placement.slots,
            objective=hardware.objective,
        )


class PoolModel:
    """engines: their maps, by name, which migrations change; arrivals: of requests, in order

    balancedness: mean over engines, of the traffic of now; gpu_s: of ranks that engines had
    """

    def __init__(
        self,
        name: str,
        hardware: Hardware,
        routing: Routing,
        arrivals: Arrivals,
        engines: dict[str, MemoryEngine],
        widest: int,
        every: int,
    ) -> None:
        """every: one of so many requests is placed by the shipped scheduler; 1: all of them"""
        self.name, self.engines, self.arrivals = name, engines, arrivals
        self._named = list(engines.values())
        self.hardware, self.routing = hardware, routing
        ranks = next(iter(engines.values())).placement.gpus
        self.serving = Serving(arrivals, len(engines), ranks, widest, hardware.speeds, every)
        self.tables = _Tables(hardware, routing)
        self.moment = 0
        known = arrivals.prefixes
        self.scheduler = Scheduler(
            [], Costs(0.0, 0.0, 0.0), block_tokens=known.block_tokens if known else BLOCK_TOKENS
        )
        self.gpu_s = 0.0
        self._next, self._now_s, self._pushed_s = 0, 0.0, 0.0
        self._decisions: dict[int, Decision] = {}
        self._again: list[int] = []  # whose engine was lost
        self._told = [(0, 0, 0, 0.0)] * len(engines)
        self._pushes = 0
        self.changed()

    def changed(self) -> None:
        """Maps, widths, who takes requests, or what the traffic is."""
        state = self.serving.state
        standing, balances = [], []
        for at, (name, engine) in enumerate(self.engines.items()):
            ranks = engine.placement.gpus
            state.wanted[at] = ranks
            state.table[at], balance = self.tables.of(engine.placement, self.moment)
            balances.append(balance)
            if not state.closed[at]:
                standing.append(Engine(name, ranks, self.hardware.speeds.kv_tokens, table=None))
        self.balancedness = float(np.mean(balances))
        problem = self.tables.problem(engine.placement, self.moment)
        self.scheduler.see(standing, costs=costs_of(problem))

    def close(self, engine: int) -> None:
        """It takes no requests, and goes on with those that it has."""
        self.serving.state.closed[engine] = 1
        self.changed()

    def lose(self, engine: int) -> None:
        """It answers no more, and the requests that it had begin again elsewhere."""
        self._named[engine].is_gone = True
        self._again += self.serving.again(engine)
        self.close(engine)

    def start(self, engine: int) -> None:
        """A new process, as wide as most others are, with experts where engines begin."""
        one = self._named[engine]
        self._again += self.serving.again(engine)
        others = [other.placement for other in self._named if other is not one]
        ranks, _ = Counter(other.gpus for other in others or [one.placement]).most_common(1)[0]
        like = next(other for other in (*others, one.placement) if other.gpus == ranks)
        one.carry_out(Discard(FORGETS))
        one.placement = linear(like.layers, like.slots, like.experts, like.gpus, like.nodes)
        one.is_gone = False
        self.open(engine)

    def open(self, engine: int) -> None:
        """It takes requests again."""
        state = self.serving.state
        state.closed[engine], state.end_s[engine] = 0, max(state.end_s[engine], self._now_s)
        self.changed()

    def advance(self, now_s: float) -> None:
        """Serve until then."""
        self.gpu_s += float(self.serving.state.wanted.sum()) * (now_s - self._now_s)
        if (moment := self.routing.at(now_s)) != self.moment:
            self.moment = moment
            self.changed()
        if self._again and self.scheduler.pool.places:
            again, self._again = self._again, []
            for one in again:
                if one % self.serving.every == 0:
                    place = divmod(self._chosen(one), self.serving.widest)
                    self.serving.arrive(one, *place, self._now_s)
                else:
                    self.serving.place(one, self._now_s)
        last = int(np.searchsorted(self.arrivals.at_s, now_s))
        chosen = NOBODY
        while self._next < last and self.scheduler.pool.places:
            self._next, events = self.serving.serve_many(self._next, last, now_s, chosen)
            self._hear(events)
            chosen = self._chosen(self._next) if self._next < last else NOBODY
        self._hear(self.serving.advance(now_s))
        self._now_s = now_s

    def push(self, fleet: Fleet, now_s: float) -> None:
        """What agents would: who they are, and what was counted since the last time."""
        self._pushes += 1
        state, model = self.serving.state, self.hardware.model
        shares = self.routing.shares[self.moment]
        window_s, self._pushed_s = max(now_s - self._pushed_s, 1e-3), now_s
        told = False  # one engine that serves tells of pairs for all
        for at, (name, engine) in enumerate(self.engines.items()):
            if engine.is_gone:
                continue
            id = self.register(fleet, name)
            now = (
                int(state.prefilled[at]), int(state.decoded[at]), int(state.steps[at]),
                float(state.busy_s[at]),
            )  # fmt: skip
            then, self._told[at] = self._told[at], now
            counted = {"prefill": now[0] - then[0], "decode": now[1] - then[1]}
            deltas = [
                Delta(phase, model.top_k, tokens, 0, (shares * tokens).astype(np.uint32))
                for phase, tokens in counted.items()
                if tokens > model.experts
            ]
            if self.routing.affinity is not None and deltas and not told:
                deltas, told = [self._with_pairs(one) for one in deltas], True
            pace = Pace(now[2] - then[2], min(now[3] - then[3], window_s), window_s)
            fleet.push(id, self._pushes, deltas, {"decode": pace})

    def _with_pairs(self, delta: Delta) -> Delta:
        assert self.routing.affinity is not None
        pairs = self.routing.affinity.counts(self.moment, delta.tokens)
        transitions, coactivation = (one.astype(np.uint32) for one in pairs)
        return replace(delta, transitions=transitions, coactivation=coactivation)

    def register(self, fleet: Fleet, engine: str) -> WorkerId:
        """As what it is now."""
        id, placement = WorkerId(self.name, engine, "all", 1), self.engines[engine].placement
        model = self.hardware.model
        worker = Worker(
            name="all", model=model.name, layers=model.layers, experts=model.experts,
            top_k=model.top_k, slots=placement.slots, ep_rank=0, ep_size=placement.gpus,
            can_apply=True, records=True, can_resize=True,
        )  # fmt: skip
        fleet.register(Registration(id, worker, shape=model, digest=placement.digest))
        return id

    def _chosen(self, one: int) -> int:
        """Its place, engine x widest + rank, as the front would choose it."""
        prompt = int(self.arrivals.prompt[one])
        known = self.arrivals.prefixes
        prefix = known.of(one) if known else ()
        request = Request(None, prompt, int(self.arrivals.output[one]), prefix)
        if (lost := self._decisions.get(one)) is not None:
            self.scheduler.ended(lost, 0)
        decision = self._decisions[one] = self.scheduler.choose(request)
        engine = list(self.engines).index(decision.engine)
        return engine * self.serving.widest + decision.rank

    def _hear(self, events: Sequence[Sequence[int]]) -> None:
        for kind, one in events:
            if (decision := self._decisions.get(one)) is None:
                continue
            if kind == BEGAN:
                self.scheduler.began(decision)
            else:
                self.scheduler.ended(decision, int(self.arrivals.output[one]))
                del self._decisions[one]
