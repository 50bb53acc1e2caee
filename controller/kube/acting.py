"""Does what a fleet wants: calls first, then the workload, the plans, the events, the status.
Killed between any two of them, the next look finds what is left to do."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter

from controller.kube.caches import KINDS, Caches
from controller.kube.cluster.api import Api, ApiError
from controller.kube.cluster.informer import Name
from controller.kube.cluster.lease import Lease
from controller.kube.cluster.recorder import EventRecorder
from controller.kube.objects import FLEETS, PLANS, Event, Kind, Object
from controller.kube.view import View
from controller.kube.wanted import news, plans, policy, selectors
from controller.kube.wanted.reconcile import reconcile
from controller.kube.wanted.world import Call, Fleet, Patch, Wanted, World
from placer.clock import Clock
from placer.errors import PlacerError
from placer.v1 import policy_pb2

ROUNDS = 4  # of calls in one look, each of which may want another

log = logging.getLogger("placer.kube")
WRITES = Counter("placer_operator_writes", "To the cluster, but for the Lease.", ["what"])
CALLS = Counter("placer_operator_calls", "Of the controller that change something.", ["method"])


class AgainError(PlacerError):
    """Somebody was faster: look again."""


class Acting:
    def __init__(
        self,
        api: Api,
        caches: Caches,
        view: View,
        lease: Lease,
        events: EventRecorder,
        clock: Clock,
    ) -> None:
        self._api, self._caches, self._view = api, caches, view
        self._lease, self._events, self._clock = lease, events, clock

    async def look(self, name: Name) -> float | None:
        """Seconds until this fleet should be looked at again; None: when something changes. Raises
        PlacerError, to be tried again."""
        found = self._caches.get(FLEETS, name)
        if found is None:
            await self._forget(name)
            return None
        fleet = Fleet(found)
        for _ in range(ROUNDS):
            world = await self._world(fleet)
            wanted = reconcile(world)
            if not wanted.calls:
                break
            for call in wanted.calls:
                await self._call(fleet, call)
        await self._write(world, wanted)
        if wanted.plans:
            return 0.0  # their statuses
        waits = [wanted.again_s, self._view.again_s(fleet.pool)]
        return min((one for one in waits if one is not None), default=None)

    async def _world(self, fleet: Fleet) -> World:
        caches = self._caches
        workload = caches.workload(fleet)
        selector = selectors.selector_of(fleet.spec, workload)
        pods, kept = caches.pods(fleet, selector), caches.plans(fleet)
        open_plans = frozenset(
            one["spec"]["planId"] for one in kept
            if (one.get("status") or {}).get("phase") not in plans.ENDED
            and one["spec"]["ledgerId"] == self._view.ledger
        )  # fmt: skip
        seen = await self._view.seen(fleet.pool, open_plans)
        return World(
            fleet=fleet, seen=seen, now=self._clock.now(), first=caches.first(fleet, pods),
            workload=workload, selector=selector, pods=pods, products=caches.products(pods),
            plans=kept,
        )  # fmt: skip

    async def _call(self, fleet: Fleet, call: Call) -> None:
        self._lease.check()
        if call.method == "Reject" and await self._is_there(fleet, call):
            raise AgainError("the cache of PlacementPlans is behind: look again")
        CALLS.labels(call.method).inc()
        await self._view.call(fleet.pool, call)

    async def _is_there(self, fleet: Fleet, call: Call) -> bool:
        """A plan is rejected if the server says that its object is gone, not if a watch lags."""
        plan = (await self._view.seen(fleet.pool, frozenset())).plans[call.request.plan_id]
        try:
            await self._api.get(PLANS, fleet.namespace, plans.name_of(fleet, plan))
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    async def _write(self, world: World, wanted: Wanted) -> None:
        fleet = world.fleet
        if wanted.patch is not None and world.workload is not None:
            await self._resize(fleet, world.workload, wanted.patch)
        for gone in wanted.obsolete:  # first: one that is made may have the name of one
            await self._delete(gone)
        for plan in wanted.plans:
            await self._make(fleet, plan)
        for name, status in wanted.statuses.items():
            one = self._caches.get(PLANS, (fleet.namespace, name))
            if one is not None:
                for event in news.of_plan(name, one.get("status") or {}, status):
                    await self._tell(fleet, event)
                await self._say(PLANS, one, status)
        if wanted.status != fleet.status:
            for event in news.of_fleet(fleet.status, wanted.status):
                await self._tell(fleet, event)
            await self._say(FLEETS, fleet.object, wanted.status)

    async def _resize(self, fleet: Fleet, workload: Object, patch: Patch) -> None:
        kind, name = KINDS[workload["kind"]], workload["metadata"]["name"]
        self._writes("workload")
        found = await self._api.patch(kind, fleet.namespace, name, patch.body, "json")
        self._caches.put(kind, found)
        log.warning("placer: %s", patch.why)
        await self._tell(fleet, Event("Scaling", patch.why))

    async def _make(self, fleet: Fleet, plan: Any) -> None:
        file = await self._view.file(plan.id)
        moves = json.loads(file).get("moves", []) if file else []
        body = plans.body_of(fleet, plan, moves)
        self._writes("plan")
        try:
            found = await self._api.create(PLANS, fleet.namespace, body)
        except ApiError as error:
            if error.status != 409:
                raise
            raise AgainError("the PlacementPlan is there already: look again") from error
        self._caches.put(PLANS, found)

    async def _say(self, kind: Kind, of: Object, status: Mapping[str, Any]) -> None:
        """Refused if somebody changed the object since it was looked at."""
        meta = of["metadata"]
        body = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
            {"op": "add", "path": "/status", "value": status},
        ]
        self._writes("status")
        where = (meta["namespace"], meta["name"])
        self._caches.put(kind, await self._api.patch(kind, *where, body, "json", "status"))

    async def _delete(self, one: Object) -> None:
        meta = one["metadata"]
        self._writes("deletion")
        try:
            await self._api.delete(PLANS, meta["namespace"], meta["name"], meta["uid"])
        except ApiError as error:
            if error.status != 404:
                raise

    async def _tell(self, fleet: Fleet, event: Event) -> None:
        self._writes("event")
        await self._events.record(fleet.object, event)

    def _writes(self, what: str) -> None:
        self._lease.check()
        WRITES.labels(what).inc()

    async def _forget(self, name: Name) -> None:
        """The policy of a fleet that is gone: the controller's file holds again."""
        for pool in [pool for pool, owner in self._view.owned() if owner == name]:
            version = self._view.version(pool)
            request = policy_pb2.DeletePolicyRequest(
                pool=pool, version=version, reason=f"{policy.owner(*name)} is gone"
            )
            self._lease.check()
            CALLS.labels("DeletePolicy").inc()
            await self._view.call(pool, Call("DeletePolicy", request, f"{pool}/{version}/delete"))
