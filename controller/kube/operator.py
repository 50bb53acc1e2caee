"""The operator: caches and the controller's view first, then the Lease, then workers."""

import asyncio
import logging
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from controller.kube.acting import Acting, AgainError
from controller.kube.caches import Caches
from controller.kube.cluster.api import Api, ApiError
from controller.kube.cluster.informer import Name, name_of
from controller.kube.cluster.lease import Lease, LeaseLostError
from controller.kube.cluster.recorder import EventRecorder
from controller.kube.cluster.work_queue import WorkQueue
from controller.kube.objects import FLEETS
from controller.kube.probes import Probes
from controller.kube.view import UnansweredError, View
from controller.kube.wanted.world import Fleet
from placer.channel import Settings
from placer.clock import Clock
from placer.errors import PlacerError

WORKERS = 4
LOOK_S = 0.05  # between two looks whether all is synced
STALE = (409, 422)  # somebody changed the object since it was read

log = logging.getLogger("placer.kube")
LOOKS = Counter("placer_operator_reconciles", "Looks at a fleet, by how they ended.", ["outcome"])
WAITING = Gauge("placer_operator_queue_length", "Fleets that wait to be looked at.")
ACTIVE = Gauge("placer_operator_active", "1 if this one holds the Lease.")
AWAY = Gauge("placer_operator_controller_away", "1 if the controller does not answer.")


@dataclass(frozen=True, slots=True)
class Options:
    """
    controller:      its host:port
    namespaces:      that are looked after; none: all
    lease_namespace: where the Lease is
    metrics:         a port for probes and Prometheus; 0: none
    """

    controller: str
    namespaces: Sequence[str]
    lease: str
    lease_namespace: str
    metrics: int


class Operator:
    def __init__(self, api: Api, options: Options, settings: Settings, clock: Clock) -> None:
        self._clock, self._api = clock, api
        self._queue: WorkQueue[Name] = WorkQueue(clock)
        self._caches = Caches(api, options.namespaces, clock, self._queue.add)
        self._view = View(options.controller, settings, clock, self._pool_changed)
        holder = os.environ.get("PLACER_POD_NAME") or f"{platform.node()}-{clock.new_id()[:8]}"
        self._lease = Lease(api, options.lease_namespace, options.lease, holder, clock)
        self._acting = Acting(
            api, self._caches, self._view, self._lease, EventRecorder(api, clock), clock
        )
        self._probes = Probes(options.metrics, self._unready) if options.metrics else None
        WAITING.set_function(lambda: len(self._queue))
        ACTIVE.set_function(lambda: float(self._lease.is_held))
        AWAY.set_function(lambda: float(bool(self._view.away)))

    async def run(self) -> None:
        """Until it is cancelled, or the Lease is lost: raises LeaseLostError."""
        try:
            if self._probes is not None:
                await self._probes.start()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._caches.run())
                tasks.create_task(self._view.run())
                await self._lease.acquire()
                tasks.create_task(self._lease.renew())
                while self._unready():
                    await self._clock.sleep(LOOK_S)
                for one in self._caches.all(FLEETS):
                    self._queue.add(name_of(one))
                for _, name in self._view.owned():
                    if not self._caches.namespaces or name[0] in self._caches.namespaces:
                        self._queue.add(name)
                for _ in range(WORKERS):
                    tasks.create_task(self._work())
        except* LeaseLostError as group:
            raise group.exceptions[0] from None
        finally:
            await self._end()

    async def _end(self) -> None:
        self._queue.close()
        await self._lease.release()
        await self._view.close()
        await self._api.close()
        if self._probes is not None:
            await self._probes.close()

    async def _work(self) -> None:
        while True:
            name = await self._queue.take()
            try:
                again_s = await self._acting.look(name)
            except LeaseLostError:
                raise
            except (AgainError, UnansweredError) as error:
                self._again(name, "again", error)
            except ApiError as error:
                word = "conflict" if error.status in STALE else "error"
                self._again(name, word, error, error.retry_after_s)
            except PlacerError as error:
                self._again(name, "error", error)
            except Exception as error:  # one fleet's fault is not the others'
                log.exception("placer: %s/%s", *name)
                self._again(name, "bug", error)
            else:
                LOOKS.labels("done").inc()
                self._queue.succeeded(name)
                if again_s is not None:
                    self._queue.add_after(name, again_s)
            finally:
                self._queue.done(name)

    def _again(self, name: Name, word: str, error: Exception, least_s: float = 0.0) -> None:
        LOOKS.labels(word).inc()
        wait_s = self._queue.failed(name, least_s)
        level = logging.WARNING if word == "error" else logging.INFO
        log.log(level, "placer: %s/%s: %s: again in %.2f s", *name, error, wait_s)

    def _pool_changed(self, pool: str) -> None:
        for one in map(Fleet, self._caches.all(FLEETS)):
            selects = one.reference is None and pool.startswith(f"{one.namespace}.")
            if pool in ("", one.pool) or selects:  # pods of that pool, it may be
                self._queue.add((one.namespace, one.name))

    def _unready(self) -> list[str]:
        view = [] if self._view.synced else ["the controller did not tell all it knows yet"]
        return self._caches.unsynced + view
