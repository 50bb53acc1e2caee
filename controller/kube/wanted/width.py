"""The width of a fleet's engines. Up: pods, ScaleTo once they are ready. Down: ScaleTo, then the
pods that it released. Between them the controller attaches, moves experts, switches and drains.

Replicas are raised once for a wish, and lowered once for pods that were released. Whatever somebody
makes of them in between, stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from controller.kube.objects import Object
from controller.kube.wanted import workloads
from controller.kube.wanted.budgets import Allowed, allowed
from controller.kube.wanted.world import Call, Patch, World
from placer.v1 import fleet_pb2

Phase = fleet_pb2.OperationPhase
OPEN = (
    fleet_pb2.OPERATION_PHASE_WAITING, fleet_pb2.OPERATION_PHASE_RUNNING,
    fleet_pb2.OPERATION_PHASE_RETURNING,
)  # fmt: skip


REMEDY = "start engines that change their width while they serve: docs/elastic.md"


@dataclass(slots=True)
class Width:
    """
    states:  desired, allocated, available, engineActive, traffic
    live:    whether it can change while engines serve
    told:    what it waits for, or what somebody should know; empty if there is nothing
    moves:   whether it is on its way
    stalled: the reason and sentence of what needs a person
    """

    states: dict[str, int]
    live: dict[str, Any]
    told: str = ""
    moves: bool = False
    stalled: tuple[str, str] | None = None
    calls: list[Call] = field(default_factory=list)
    patch: Patch | None = None
    until: float | None = None


def width_of(world: World) -> Width:
    return _Widening(world).width()


class _Widening:
    def __init__(self, world: World) -> None:
        self.world, self.fleet, seen = world, world.fleet, world.seen
        self.pool = seen.pool
        self.engines = list(self.pool.engines) if self.pool is not None else []
        self.count = max(len(self.engines), 1)
        self.group = workloads.group_of(self.fleet, world.workload)
        self.pods = [
            pod for pod in world.pods if not _is_leaving(pod) and world.pool_of(pod) is None
        ]
        self.each = _gpus_each(self.group, self.pods)
        self.ready = [pod for pod in self.pods if pod["ready"]]
        spec = self.fleet.spec
        self.given = int((spec.get("width") or {}).get("ranks") or 0)
        stock = self.pool.stock if self.pool is not None else None
        asked = stock.desired if stock is not None and spec.get("slo") else 0
        self.wish = self.given or ceil(asked / self.count)
        self.needed = ceil(self.wish * self.count / self.each)
        self.budget: Allowed = allowed(spec.get("budgets") or [], "Scale", world.now)
        # The wish that was acted upon; what somebody makes of replicas since is respected.
        self._handled = int((self.fleet.status.get("width") or {}).get("desired") or 0)
        self.scales = [one for one in seen.operations if one.kind == "scale"]

    def width(self) -> Width:
        reason, remedy = workloads.why_not_live(self.fleet, self.world.workload)
        live: dict[str, Any] = {"possible": not reason}
        if reason:
            live |= {"reason": reason, "remedy": remedy}
        found = Width(self._states(), live)
        self._report(found)
        if self.world.stray:
            return found
        if self.pool is None or not self.engines:
            self._raise(found)
            return found
        if reason:
            if self.given and any(one.ranks not in (0, self.given) for one in self.engines):
                wanted = f"width.ranks is {self.given} and engines have {self._ranks()}"
                found.stalled = "WidthNotLive", f"{wanted}: {reason}: {remedy}"
            return found
        if self._is_open():
            found.moves = True
            self._raise(found)
        elif self.wish and not self._is_there():
            self._change(found)
        else:
            self._release(found)
        return found

    def _states(self) -> dict[str, int]:
        stock = self.pool.stock if self.pool is not None else fleet_pb2.Stock()
        replicas = self.group["replicas"] if self.group is not None else len(self.pods)
        found = {
            "desired": max((one.ranks for one in self.engines), default=0),
            "engineActive": stock.active or sum(one.ranks for one in self.engines),
            "traffic": stock.traffic,
        }  # fmt: skip
        if any(not one.ranks for one in self.engines):  # between two widths, it serves on
            found |= self.fleet.status.get("width") or {}
        if self.wish:
            found["desired"] = self.wish
        return {**found, "allocated": replicas, "available": len(self.ready)}

    def _report(self, found: Width) -> None:
        """The pods that there are, whenever that changes."""
        if self.pool is None:
            return
        request = fleet_pb2.ReportCapacityRequest(
            pool=self.fleet.pool, allocated=found.states["allocated"] * self.each,
            ready_pods=self._ready_pods(),
        )  # fmt: skip
        key = f"{self.fleet.uid}/capacity/{request.SerializeToString(deterministic=True).hex()}"
        if request != self.world.seen.reported and key not in self.world.seen.refused:
            found.calls.append(Call("ReportCapacity", request, key))

    def _change(self, found: Width) -> None:
        before = max(one.ranks for one in self.engines)
        if not self._is_possible(found):
            found.states["desired"] = self._handled
            return
        self._raise(found)
        key = f"{self.fleet.uid}/scale/{self.fleet.generation}/{self.wish}"
        known = next((one for one in self.scales if one.idempotency_key == key), None)
        if not self.given:
            return  # the controller scales by itself, once it has the pods
        if known is not None:
            self._ended(found, known)
        elif key in self.world.seen.refused:
            found.told = self.world.seen.refused[key]
        elif self.budget.why:
            found.told, found.until = f"{self.budget.why}: the width waits", self.budget.until
        elif self.wish > before and (short := self._short()):
            found.told = found.told or short
            enough = self.group is None or self.group["replicas"] >= self.needed
            found.moves = found.moves or enough
        else:
            found.moves = True
            request = fleet_pb2.ScaleToRequest(
                pool=self.fleet.pool, ranks=self.wish, wait=True, idempotency_key=key,
                reason=f"MoEFleet {self.fleet.namespace}/{self.fleet.name} wants {self.wish} ranks",
                ready_pods=self._ready_pods(),
            )  # fmt: skip
            found.calls.append(Call("ScaleTo", request, key))

    def _is_possible(self, found: Width) -> bool:
        """Whether these engines can become that wide, asked before any pod is made for it."""
        lacks_pods = self.group is not None and self.group["replicas"] < self.needed
        if not self.given or not lacks_pods or self._handled == self.wish:
            return True
        key = f"{self.fleet.uid}/possible/{self.fleet.generation}/{self.wish}"
        if why := self.world.seen.refused.get(key):
            found.live = {"possible": False, "reason": why, "remedy": REMEDY}
            found.stalled = "WidthNotLive", f"{self.wish} ranks: {why}"
        elif self.world.seen.busy:
            found.told = f"{self.world.seen.busy} is at work: {self.wish} ranks wait for its end"
        elif key not in self.world.seen.checked:
            request = fleet_pb2.ScaleToRequest(pool=self.fleet.pool, ranks=self.wish, dry_run=True)
            found.calls.append(Call("ScaleTo", request, key))
        return key in self.world.seen.checked

    def _ended(self, found: Width, known: Any) -> None:
        """Of the scaling that was asked for, while the engines have another width."""
        again = "change spec.width.ranks to have it tried again"
        if known.phase == fleet_pb2.OPERATION_PHASE_REFUSED:
            found.live = {
                "possible": False, "reason": known.reason,
                "remedy": REMEDY,
            }  # fmt: skip
            found.stalled = "WidthNotLive", f"{known.id} was refused: {known.reason}"
        elif known.phase == fleet_pb2.OPERATION_PHASE_SUCCEEDED:
            found.told = (
                f"engines have {self._ranks()} ranks since {known.id} made them {self.wish}: "
                f"somebody's choice is respected: {again}"
            )
        else:
            word = Phase.Name(known.phase).removeprefix("OPERATION_PHASE_").replace("_", " ")
            found.stalled = "OperationHalted", f"{known.id} {word.lower()}: {known.reason}: {again}"

    def _raise(self, found: Width) -> None:
        """Pods for a wish that is new, where placer may change how many there are."""
        if self.group is None or self.world.workload is None or not self.wish:
            return
        if not found.live["possible"]:
            return
        replicas = self.group["replicas"]
        if replicas >= self.needed:
            return
        if self._handled == self.wish:
            found.told = (
                f"replicas of {self.fleet.title} are {replicas}, and {self.wish} ranks need "
                f"{self.needed}: somebody's edit is respected: raise them, or change "
                "spec.width.ranks"
            )
            return
        if self.budget.why:
            found.told, found.until = f"{self.budget.why}: the width waits", self.budget.until
            found.states["desired"] = self._handled
            return
        if (most := self.group.get("most")) is not None and self.needed > most:
            found.stalled = (
                "WidthNotLive",
                (
                    f"{self.wish} ranks need {self.needed} pods, and maxReplicas of worker group "
                    f"{self.group['name']} is {most}: raise it"
                ),
            )
            found.states["desired"] = self._handled
            return
        why = f"{self.fleet.title}: {replicas} -> {self.needed} replicas, for {self.wish} ranks"
        found.patch = workloads.resized(self.fleet, self.world.workload, self.needed, why)
        found.states["allocated"] = self.needed
        found.moves = True

    def _release(self, found: Width) -> None:
        """Pods that the newest scaling left, once the workload has what it should: if the last
        lowering is still on its way there are more pods than replicas."""
        group, workload = self.group, self.world.workload
        last = next(iter(self.scales), None)
        if group is None or workload is None or last is None:
            return
        if last.phase != fleet_pb2.OPERATION_PHASE_SUCCEEDED or len(self.pods) != group["replicas"]:
            return
        gone, why = workloads.removable(self.fleet, self.pods, last.released_pods)
        floor = ceil(sum(one.ranks for one in self.engines) / self.each)
        gone = gone[: max(group["replicas"] - floor, 0)]
        found.told = why
        if gone:
            replicas = group["replicas"] - len(gone)
            why = f"{self.fleet.title}: {group['replicas']} -> {replicas} replicas, no engine needs"
            told = f"{why} {', '.join(gone)}"
            found.patch = workloads.resized(self.fleet, workload, replicas, told, gone)
            found.states["allocated"] = replicas
            found.moves = True

    def _short(self) -> str:
        ready, wanted = len(self.ready) * self.each, self.wish * self.count
        if ready >= wanted:
            return ""
        return f"{len(self.ready)} of {self.needed} pods are ready for {wanted} ranks"

    def _ready_pods(self) -> list[Any]:
        found = [(pod["metadata"]["uid"], pod["gpus"] or self.each) for pod in self.ready]
        return [fleet_pb2.ReadyPod(uid=uid, gpus=gpus) for uid, gpus in sorted(found)]

    def _is_open(self) -> bool:
        return any(one.phase in OPEN for one in self.scales)

    def _is_there(self) -> bool:
        return all(one.ranks == self.wish for one in self.engines)

    def _ranks(self) -> str:
        return " and ".join(map(str, sorted({one.ranks for one in self.engines})))


def _gpus_each(group: Any, pods: Sequence[Object]) -> int:
    """Of a pod; one that asks for none is one rank."""
    asked = group["gpus"] if group is not None else 0
    return asked or max((pod["gpus"] for pod in pods), default=0) or 1


def _is_leaving(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]
