"""vLLM's engines, through the agents in their workers: a plan is offered, the ranks agree on it
among themselves, and vLLM's balancer moves the weights; then the ranks say what they read back."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from controller.config import Config
from controller.fleet.pools import Member, Width, kinds, width_of
from controller.fleet.workers import Fleet, FleetError
from controller.ledger.ledger import LedgerError
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import (
    Agree,
    Command,
    Discard,
    Done,
    Lost,
    Outcome,
    Refused,
    Stage,
    Verify,
)
from controller.ports import EngineLostError
from placer.files.plans import plan_text
from placer.placement import Placement, linear
from placer.plan import Plan
from placer.refusal import refusal

LOOK_S = 0.2

Offer = tuple[int, bytes]  # epoch, plan file


class VllmEngines:
    """The engines whose workers have agents, and the plans that are on offer to them."""

    def __init__(self, fleet: Fleet, ledger: WatchedLedger, config: Config) -> None:
        self.fleet, self.ledger, self.config = fleet, ledger, config
        self._offers: dict[tuple[str, str], Offer] = {}
        self._changed = asyncio.Condition()

    def moves_itself(self, pool: str, engine: str) -> bool:
        return True

    async def stands(self, pool: str, engine: str) -> Placement:
        members = self.members(pool, engine)
        digests = {member.registration.digest for member in members}
        if len(digests) > 1:
            raise EngineLostError(f"the ranks of {engine} are about to change")
        (digest,) = digests
        if not digest:
            return self._linear(pool, engine)
        try:
            return self.ledger.placement(digest)
        except LedgerError as error:
            raise EngineLostError(f"{engine} serves a map that nobody here planned") from error

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        try:
            return await self._carry_out(pool, engine, command)
        except EngineLostError as error:
            return Lost(str(error))

    async def _carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        match command:
            case Stage():
                return await self._stage(pool, engine, command)
            case Verify(epoch=epoch, digest=digest):
                return await self._arrival(pool, engine, epoch, digest)
            case Discard():
                # What a rank may have taken up already is decided by what they say next.
                self._offers.pop((pool, engine), None)
                return Done()
            case Agree():
                return Done()  # they do inside the engine, at its next rebalancing step
        raise TypeError(command)

    async def offers(self, pool: str, engine: str, after_epoch: int) -> AsyncIterator[Offer]:
        """What an engine's workers should apply, from now on."""
        while True:
            async with self._changed:
                epoch, file = self._offers.get((pool, engine), (0, b""))
                if epoch <= after_epoch:
                    await self._changed.wait()
                    continue
            after_epoch = epoch
            yield epoch, file

    async def _stage(self, pool: str, engine: str, command: Stage) -> Outcome:
        now, plan = await self.stands(pool, engine), Plan(command.after)
        if now.digest != command.before.digest:
            return Refused(f"it serves {now.digest}: plan from that map")
        for member in kinds(self.members(pool, engine)):
            if reason := refusal(plan, member.registration.worker):
                return Refused(f"{member.registration.id.worker}: {reason}")
        self.ledger.keep_placement(command.after)
        await self._offer((pool, engine), (command.epoch, lean(plan).encode()))
        return Done()

    async def _offer(self, key: tuple[str, str], offer: Offer) -> None:
        async with self._changed:
            self._offers[key] = offer
            self._changed.notify_all()

    async def _arrival(self, pool: str, engine: str, epoch: int, digest: str) -> Outcome:
        while True:
            members = self.members(pool, engine)
            for member in members:
                worker = member.registration
                if worker.refused_epoch == epoch:
                    return Refused(f"{worker.id.worker}: {worker.refused}")
                if worker.condition:
                    return Refused(f"{worker.id.worker}: {worker.condition}")
            if all(member.registration.digest == digest for member in members):
                return Done()
            await self.ledger.clock.sleep(LOOK_S)

    def members(self, pool: str, engine: str) -> list[Member]:
        """All ranks, seen lately. Raises EngineLostError if some are not."""
        try:
            members = self.fleet.engine(pool, engine)
        except FleetError as error:
            raise EngineLostError(str(error)) from error
        ranks = self._width(engine, members).ranks
        there = [
            member
            for member in members
            if self.fleet.is_heard(member) and member.registration.worker.ep_size == ranks
        ]
        if len(there) < ranks:
            raise EngineLostError(f"{len(there)} of {ranks} ranks of {engine} are heard")
        return there

    def _width(self, engine: str, members: Sequence[Member]) -> Width:
        if (width := width_of(members)) is None:
            raise EngineLostError(f"{engine} is being resized: its ranks do not agree on its width")
        return width

    def _linear(self, pool: str, engine: str) -> Placement:
        """What an engine starts with."""
        width, model = self._width(engine, self.members(pool, engine)), self.fleet.pool(pool).model
        nodes = self.config.of(pool).hardware(width.ranks).nodes
        return linear(model.layers, width.slots, model.experts, width.ranks, nodes)


def lean(plan: Plan) -> str:
    """Its file without what only people read: hundreds of agents want it at once."""
    return plan_text(replace(plan, moves=(), notes=(), provenance=None))
