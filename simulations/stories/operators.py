"""What operators do, through the controller's own services."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from controller.changes.plans import PlanState
from controller.engines.vllm_engines import VllmEngines
from controller.loop import Loop
from controller.server.fleet_state import FleetState
from controller.server.services import Placements
from controller.server.strangers import Spacing
from placer.errors import PlacerError
from placer.plan import Plan
from placer.v1 import fleet_pb2, placement_pb2
from placer.virtual_clock import VirtualClock
from simulations.stories.story import Event, TinyPool, a_map
from simulations.stories.watch import Watch


class RefusedError(Exception):
    """A call's status that is not OK."""


class Call:
    """What services see of gRPC."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort(self, code: grpc.StatusCode, told: str) -> None:
        self.watch.check(code is not grpc.StatusCode.INTERNAL, "no bug answers", told)
        raise RefusedError(f"{code.name}: {told}")


class Services:
    """What operators call, in one life of a controller."""

    def __init__(self, loop: Loop) -> None:
        spacing = Spacing(loop.ledger.clock)
        offers = VllmEngines(loop.fleet, loop.ledger, loop.config)
        placements, state = Placements(loop, spacing, offers), FleetState(loop, spacing)
        self.loop = loop
        self.approve, self.apply, self.rollback = (
            placements.Approve, placements.Apply, placements.Rollback,
        )  # fmt: skip
        self.scale = state.ScaleTo


class Operators:
    """living: the controller that answers now, if one does"""

    def __init__(
        self, clock: VirtualClock, watch: Watch, living: Callable[[], Services | None]
    ) -> None:
        self.clock, self.watch, self.living = clock, watch, living

    async def do(self, deed: Event, pool: TinyPool) -> None:
        """Ends whatever becomes of it."""
        name, key = f"p{deed.pool}", deed.key
        if (services := self.living()) is None:
            return
        what = deed.what.removesuffix(" twice")
        if what in ("apply", "rollback", "scale"):
            self.watch.keys.add(key)
        match what:
            case "propose":
                self._propose(services, deed, pool)
            case "approve":
                plans = services.loop.arbiter.plans
                for record in plans.in_state(name, PlanState.PROPOSED)[:1]:
                    self.watch.approved.add(record.id)
                    await self._ask(deed, what, placement_pb2.ApproveRequest(plan_id=record.id))
            case "apply":
                if (id := self._propose(services, deed, pool)) is not None:
                    self.watch.approved.add(id)
                    request = placement_pb2.ApplyRequest(plan_id=id, idempotency_key=key)
                    await self._ask(deed, what, request)
            case "rollback":
                again = placement_pb2.RollbackRequest(pool=name, idempotency_key=key)
                await self._ask(deed, what, again)
            case "scale":
                wider = fleet_pb2.ScaleToRequest(
                    pool=name, ranks=deed.ranks, idempotency_key=key, wait=deed.in_turn
                )
                await self._ask(deed, what, wider)

    async def back(self, pool: str, key: str) -> str:
        """Roll it back; why that is refused, or nothing."""
        self.watch.keys.add(key)
        return await self._call(
            "rollback", placement_pb2.RollbackRequest(pool=pool, idempotency_key=key)
        )

    def _propose(self, services: Services, deed: Event, pool: TinyPool) -> str | None:
        loop, name = services.loop, f"p{deed.pool}"
        with suppress(PlacerError):
            if (group := loop.fleet.pool(name).group()) is not None:
                plan = Plan(a_map(deed.lot, pool, group.ranks, group.slots))
                return loop.arbiter.propose(name, plan, "", f"lot {deed.lot}").id
        return None

    async def _ask(self, deed: Event, method: str, request: Any) -> None:
        async with asyncio.TaskGroup() as calls:
            calls.create_task(self._call(method, request))
            if deed.what.endswith("twice"):
                await self.clock.sleep(deed.wait_s)
                calls.create_task(self._call(method, request))

    async def _call(self, method: str, request: Any) -> str:
        """It ends with the controller that answers it. Why it is refused, or nothing"""
        if (services := self.living()) is None:
            return "nobody answers"
        answer = asyncio.create_task(getattr(services, method)(request, Call(self.watch)))
        await asyncio.wait({answer})
        if not answer.cancelled() and (error := answer.exception()) is not None:
            self.watch.check(isinstance(error, RefusedError), "no bug answers", repr(error))
            return str(error)
        return ""
