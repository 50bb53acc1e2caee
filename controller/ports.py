"""What the loop acts through. Adapters are in engines/; each passes the same contract tests."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from controller.migration.commands import Command, Outcome
from controller.samples import Sample
from placer.errors import PlacerError
from placer.placement import Placement
from placer.plan import Hold, Infeasible, Plan
from placer.problem import Problem
from placer.resize.price import Price
from placer.schedule import Budget, MigrationSchedule
from placer.topology import Topology
from placer.trace import Trace


class EngineLostError(PlacerError):
    """The engine cannot be reached, or does not say how it stands."""


@dataclass(frozen=True, slots=True, eq=False)
class Unseen:
    """Requests that a plan is not made from, to judge it on. trace: None if there are too few;
    told: of which requests that is, or why there is none"""

    told: str
    trace: Trace | None = None


class Relocation(NamedTuple):
    """From which map to which experts are moved, and with what: as ``placer.schedule`` takes it."""

    before: Placement
    after: Placement
    expert_bytes: int
    topology: Topology
    budget: Budget


class Engines(Protocol):
    """The serving engines of the fleet, by pool and name."""

    def moves_itself(self, pool: str, engine: str) -> bool:
        """Whether it takes whole plans and moves the weights by itself, as vLLM's balancer does;
        then ``Drop``, ``Copy`` and ``Commit`` are never asked of it."""

    async def stands(self, pool: str, engine: str) -> Placement:
        """The map that serves, as read back from its ranks. Raises EngineLostError."""

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome: ...


class Planner(Protocol):
    """Where optimizers run: never on a real loop's own thread. In virtual time a solve takes as
    long as its planner says."""

    async def answer(
        self, problem: Problem, optimizer: str, unseen: Unseen | None = None
    ) -> Plan | Hold | Infeasible:
        """unseen: what its plan is judged on besides, if anything was to be sampled"""

    async def resized(
        self, problem: Problem, current: Placement, optimizer: str
    ) -> Price | Infeasible:
        """The cheapest way from ``current`` to the problem's width."""

    async def scheduled(self, relocation: Relocation) -> MigrationSchedule:
        """See ``placer.schedule``. It waits for no solve: what was approved goes on."""


class Metrics(Protocol):
    """What engines say of their load."""

    async def sample(self, pool: str, engine: str) -> Sample:
        """Raises EngineLostError if it does not answer, or with something else."""


@dataclass(frozen=True, slots=True)
class Stock:
    """GPUs of a pool, by how far they have come; each is at most the one before, but for what is
    being released.

    desired:   asked for
    allocated: given, by whoever has them
    available: whose processes are up, to join an engine or to serve as one
    active:    that an engine computes on
    traffic:   whose engine is sent requests
    """

    desired: int = 0
    allocated: int = 0
    available: int = 0
    active: int = 0
    traffic: int = 0


class Capacity(Protocol):
    """Where GPUs come from."""

    async def ask(self, pool: str, gpus: int) -> None:
        """It should have at least so many; once more is no harm."""

    def asked(self, pool: str) -> int:
        """GPUs that it should have, as was said; 0 if nobody said so."""

    async def ready(self, pool: str) -> Stock:
        """What it has now."""

    async def release(self, pool: str, gpus: int) -> None:
        """It needs no more than so many. What an engine computes on is not taken from it."""
