"""What all requests of a front share."""

import asyncio
from collections import deque
from collections.abc import Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from controller.router.bodies.tokenizing import Tokenizing
from controller.router.pool.endpoints import Backend, Endpoints, EngineRank
from controller.router.pool.table_watch import KnownTables
from controller.router.scheduling.decide import NoRankError
from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Decision, Request
from controller.router.shared.access_log import AccessLog
from controller.router.shared.metrics import RouterMetrics
from controller.router.shared.settings import Limits
from controller.router.wire import heads
from controller.router.wire.heads import ID, OWN, Headers
from placer.clock import Clock
from placer.cost.requests import Costs
from placer.marks import Mark, mark_of

REMEMBERED, SHORT = 1024, 2048  # heads, and bytes of each


class Scheduler(Protocol):
    """Which rank a request goes to: controller/router/scheduling/scheduler.py"""

    def see(
        self, engines: Sequence[Engine], tables: Lookup | None = None, costs: Costs | None = None
    ) -> None: ...

    def hear(self, others: Mapping[tuple[str, int], float]) -> None: ...

    def choose(
        self, request: Request, among: Collection[tuple[str, int]] | None = None
    ) -> Decision: ...

    def began(self, decision: Decision) -> None: ...

    def ended(self, decision: Decision, generated: int | None = None) -> None: ...


class RequestRouter:
    """Chooses ranks for requests and counts who is where; of one front or picker.

    key: headers that open engines; not_passed: those of clients that engines do not get;
    active: requests under way; held: those of them that wait for an engine; tick_s: the monotonic
    time as of a moment ago"""

    def __init__(
        self,
        scheduler: Scheduler,
        limits: Limits,
        clock: Clock,
        log: AccessLog,
        key: Headers,
        keeps_keys: bool,
    ) -> None:
        """keeps_keys: whether clients' keys are for the front, and no business of engines"""
        self.scheduler, self.limits, self.clock, self.log = scheduler, limits, clock, log
        self.key = key
        self.not_passed = OWN | {b"authorization"} if keeps_keys or key else OWN
        self.endpoints = Endpoints(self._changed, self._heard)
        self.metrics = RouterMetrics(self.endpoints)
        self.tokenizing: Tokenizing | None = None
        self.active: set[Any] = set()
        self.held: deque[Any] = deque()
        self.tick_s = clock.monotonic()
        self._heads: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
        self._bytes = 0  # of bodies
        self._tasks: set[asyncio.Task[None]] = set()
        self._plan = ""  # that tables are known of
        self._maps: Mapping[str, str] = {}
        self._control: float | None = None  # its share, as the pool has it
        self._controls = 0.0  # requests that the control group is due

    def head(self, headers: Headers) -> bytes:
        """The lines of what an engine gets of them. Clients send the same again and again."""
        key = tuple(headers)
        found = self._heads.get(key)
        if found is None:
            passed = [
                one for one in heads.passed_on(headers, self.not_passed) if not _is_marked(one)
            ]
            found = heads.lines([*passed, *self.key])
            if len(self._heads) >= REMEMBERED:
                self._heads.clear()
            if len(found) <= SHORT:
                self._heads[key] = found
        return found

    def choose(
        self, request: Request, among: Collection[EngineRank] | None = None
    ) -> tuple[Decision, Backend] | None:
        """Where it is sent, and until ``ended`` counts. None: no rank takes requests now. among:
        the only ones that may be chosen"""
        if not self.endpoints.backends:
            return None
        try:
            decision = self.scheduler.choose(request, among)
        except NoRankError:
            return None
        backend = self.endpoints.backends[EngineRank(decision.engine, decision.rank)]
        backend.endpoint.own[decision.rank] += 1
        backend.endpoint.served += 1
        return decision, backend

    def ended(self, decision: Decision, backend: Backend, generated: int) -> None:
        """It is there no more. generated: tokens, so far"""
        backend.endpoint.own[decision.rank] -= 1
        self.scheduler.ended(decision, generated)

    def reserve(self, size: int) -> bool:
        """Whether there is memory for so many more bytes of bodies; never refused if negative."""
        self._bytes += size
        return self._bytes <= self.limits.bodies_bytes

    def know(
        self, maps: Mapping[str, str], known: KnownTables | None, control: float | None = None
    ) -> None:
        """maps: digests of those that engines serve, by name; known: new tables of one of them;
        control: share of requests that go by load alone, None: as the limits say"""
        self._control = control
        if maps == self._maps and (known is None or not (known.plan or self._plan)):
            return
        self._maps = maps
        if known is None:
            self._changed()
        else:
            self._plan = known.plan
            self._changed(known.tables, known.costs)

    def mark(self) -> Mark:
        """How the next request's rank is to be chosen: by tables, but for a control group."""
        if not self._plan:
            return Mark.NONE
        self._controls += self.limits.control if self._control is None else self._control
        if self._controls < 1:
            return Mark.TABLES
        self._controls -= 1
        return Mark.LOAD

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _changed(self, tables: Lookup | None = None, costs: Costs | None = None) -> None:
        """For those that wait there may be a rank now."""
        endpoints = self.endpoints
        engines = []
        for name, ranks in endpoints.ranks.items():
            shut = {
                rank for rank in range(ranks) if EngineRank(name, rank) not in endpoints.backends
            }
            table = 0 if self._plan and self._maps.get(name) == self._plan else None
            engines.append(Engine(name, ranks, draining=frozenset(shut), table=table))
        self.scheduler.see(engines, tables, costs)
        if endpoints.backends:
            held, self.held = self.held, deque()
            for one in held:
                one.place()

    def _heard(self) -> None:
        """Two fronts on one pool would else each see a part of what its ranks have to do."""
        self.scheduler.hear(self.endpoints.others())


def _is_marked(header: tuple[bytes, bytes]) -> bool:
    """Whether a client says how its rank was chosen: only a front does."""
    return header[0] == ID and bool(mark_of(header[1].decode("latin-1")))
