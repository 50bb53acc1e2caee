"""All engines of a fleet, each through its own adapter."""

from controller.fleet.workers import Fleet
from controller.migration.commands import Command, Outcome
from controller.ports import EngineLostError, Engines, Metrics
from controller.samples import Sample
from placer.errors import PlacerError
from placer.placement import Placement


class FleetEngines:
    """Engines that registered with an actor's name are reached by it, others by their agents."""

    def __init__(self, fleet: Fleet, by_actor: Engines, by_agent: Engines) -> None:
        self.fleet, self.by_actor, self.by_agent = fleet, by_actor, by_agent

    def moves_itself(self, pool: str, engine: str) -> bool:
        return self._adapter(pool, engine).moves_itself(pool, engine)

    async def stands(self, pool: str, engine: str) -> Placement:
        return await self._adapter(pool, engine).stands(pool, engine)

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        return await self._adapter(pool, engine).carry_out(pool, engine, command)

    def _adapter(self, pool: str, engine: str) -> Engines:
        try:
            member = self.fleet.engine(pool, engine)[0]
        except PlacerError as error:
            raise EngineLostError(str(error)) from error
        return self.by_actor if member.registration.actor else self.by_agent


class FleetMetrics:
    """Metrics of engines that registered an actor's name by it, of others by their addresses."""

    def __init__(self, fleet: Fleet, by_actor: Metrics, by_address: Metrics) -> None:
        self.fleet, self.by_actor, self.by_address = fleet, by_actor, by_address

    async def sample(self, pool: str, engine: str) -> Sample:
        try:
            member = self.fleet.engine(pool, engine)[0]
        except PlacerError as error:
            raise EngineLostError(str(error)) from error
        adapter = self.by_actor if member.registration.actor else self.by_address
        return await adapter.sample(pool, engine)
