"""What all requests of a front share."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from controller.router.front.access_log import AccessLog
from controller.router.front.figures import Figures
from controller.router.front.settings import Limits
from controller.router.pool.doors import Doors, Place, Seat
from controller.router.scheduling.decide import NoRankError
from controller.router.scheduling.pool import Engine
from controller.router.scheduling.request import Decision, Request
from controller.router.wire.heads import Headers
from placer.clock import Clock


class Scheduler(Protocol):
    """Which rank a request goes to (controller/router/scheduling)."""

    def see(self, engines: Sequence[Engine]) -> None: ...

    def hear(self, others: Mapping[Place, float]) -> None:
        """Requests at each rank that somebody else sent."""

    def choose(self, request: Request) -> Decision: ...

    def began(self, decision: Decision) -> None: ...

    def ended(self, decision: Decision, generated: int | None = None) -> None: ...


class Tokenizing(Protocol):
    """Text to tokens, beside the event loop."""

    def encode(self, asked: Any, done: Any) -> None: ...


@dataclass(slots=True)
class Desk:
    """key: headers that open engines; active: requests under way; held: those of them that wait
    for an engine"""

    scheduler: Scheduler
    doors: Doors
    limits: Limits
    clock: Clock
    figures: Figures
    log: AccessLog
    key: Headers = field(default_factory=list)
    tokenizing: Tokenizing | None = None
    active: set[Any] = field(default_factory=set)
    held: deque[Any] = field(default_factory=deque)

    def choose(self, request: Request) -> tuple[Decision, Seat] | None:
        """None: no rank takes requests now."""
        if not self.doors.seats:
            return None
        try:
            decision = self.scheduler.choose(request)
        except NoRankError:
            return None
        seat = self.doors.seats.get(Place(decision.engine, decision.rank))
        if seat is None:
            self.scheduler.ended(decision, 0)
            return None
        return decision, seat

    def changed(self) -> None:
        """Ranks came or went: for those that wait there may be one."""
        doors = self.doors
        shut: dict[str, set[int]] = {}
        for engine, ranks in doors.ranks.items():
            shut[engine] = {rank for rank in range(ranks) if Place(engine, rank) not in doors.seats}
        self.scheduler.see([
            Engine(engine, doors.ranks[engine], draining=frozenset(them))
            for engine, them in shut.items()
        ])  # fmt: skip
        if doors.seats:
            held, self.held = self.held, deque()
            for one in held:
                one.place()

    def heard(self) -> None:
        """Two fronts on one pool would else each see the half of it."""
        self.scheduler.hear(self.doors.others())
