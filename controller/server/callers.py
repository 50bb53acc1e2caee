"""Who calls a method, and as whom they may speak and hear."""

from contextvars import ContextVar
from dataclasses import dataclass
from enum import Flag

from placer.errors import PlacerError


class Role(Flag):
    """What a caller may do. What agents may, and fronts, is part of what operators may. Sampled
    requests are for trace readers alone; tables, which hold no sequence, for fronts, too."""

    NONE = 0
    AGENT = 1
    SEE = 2  # the fleet
    TABLES = 4
    FRONT = SEE | TABLES
    OPERATOR = AGENT | FRONT | 8
    TRACE_READER = TABLES | 16
    CLIENT = 32


class ForbiddenError(PlacerError):
    """What the token does not allow."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names that an agent's token is for; empty: any."""

    pool: str = ""
    engine: str = ""
    worker: str = ""

    def include(self, pool: str, engine: str, worker: str) -> bool:
        """worker: empty for the engine as a whole"""
        told = ((self.pool, pool), (self.engine, engine), (self.worker, worker or self.worker))
        return all(own in ("", name) for own, name in told)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. names: that it may have, if it is an agent; reader: who it is, if it may read
    traces"""

    role: Role
    names: tuple[Names, ...] = ()
    reader: str = ""

    def check(self, pool: str, engine: str, worker: str = "") -> None:
        """Raises ForbiddenError for who may not speak and hear as this worker, or this engine."""
        if Role.OPERATOR in self.role:
            return
        if not pool or not engine:
            raise ForbiddenError(
                "an agent's token is for its own engine alone: name pool and engine, or use an "
                "operator's"
            )
        if not any(names.include(pool, engine, worker) for names in self.names):
            who = f"{worker} of {engine}" if worker else engine
            raise ForbiddenError(
                f"this token is not for {who} in {pool}: see its names in the controller's tokens, "
                "and PLACER_POOL and PLACER_ENGINE"
            )


# Of the call that is being answered; set by the guard before the method begins.
CALLER: ContextVar[Caller] = ContextVar("CALLER")
