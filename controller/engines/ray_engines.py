"""The door to Ray: engines as actors, planners as tasks."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from controller.engines.planning import answer, resized
from controller.fleet.workers import Fleet, FleetError
from controller.migration.commands import Command, Lost, Outcome
from controller.ports import EngineLostError, Relocation, Unseen
from controller.samples import Sample
from placer.errors import PlacerError
from placer.placement import Placement
from placer.plan import Hold, Infeasible, Plan
from placer.problem import Problem
from placer.resize.price import Price
from placer.schedule import MigrationSchedule, schedule

NAMESPACE = "placer"
PATIENCE_S = 10.0  # for an actor to say how it stands


class RayPlanner:
    """Each answer is a task of its own, so pools are planned side by side."""

    def __init__(self) -> None:
        self._task: Any = ray.remote(num_cpus=0)(_call)

    async def answer(
        self, problem: Problem, optimizer: str, unseen: Unseen | None = None
    ) -> Plan | Hold | Infeasible:
        found: Plan | Hold | Infeasible = await self._ask(answer, problem, optimizer, unseen)
        return found

    async def resized(
        self, problem: Problem, current: Placement, optimizer: str
    ) -> Price | Infeasible:
        found: Price | Infeasible = await self._ask(resized, problem, current, optimizer)
        return found

    async def scheduled(self, relocation: Relocation) -> MigrationSchedule:
        found: MigrationSchedule = await self._ask(schedule, *relocation)
        return found

    async def _ask(self, what: Callable[..., Any], *of: Any) -> Any:
        found = await self._task.remote(what, *of)
        if isinstance(found, PlacerError):
            raise found
        return found


def _call(what: Callable[..., Any], *of: Any) -> Any:
    try:
        return what(*of)
    except PlacerError as error:  # as itself, not in Ray's clothes
        return error


class RayEngines:
    """Engines that registered with the name of an actor."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def moves_itself(self, pool: str, engine: str) -> bool:
        return False

    async def stands(self, pool: str, engine: str) -> Placement:
        try:
            async with self.fleet.clock.timeout(PATIENCE_S):
                placement: Placement = await self._actor(pool, engine).placement.remote()
        except (RayError, ValueError, FleetError, TimeoutError) as error:
            raise EngineLostError(f"{engine} of {pool}: {_why(error)}") from error
        return placement

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        try:
            outcome: Outcome = await self._actor(pool, engine).carry_out.remote(command)
        except (RayError, ValueError, FleetError) as error:
            return Lost(_why(error))
        return outcome

    async def sample(self, pool: str, engine: str) -> Sample:
        try:
            async with self.fleet.clock.timeout(PATIENCE_S):
                sample: Sample = await self._actor(pool, engine).sample.remote()
        except (RayError, ValueError, FleetError, TimeoutError) as error:
            raise EngineLostError(f"{engine} of {pool}: {_why(error)}") from error
        return sample

    def _actor(self, pool: str, engine: str) -> Any:
        """Raises ValueError if there is none of that name."""
        name = self.fleet.engine(pool, engine)[0].registration.actor
        return ray.get_actor(name, namespace=NAMESPACE)


def _why(error: Exception) -> str:
    if isinstance(error, RayActorError):
        return "its actor is gone"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
