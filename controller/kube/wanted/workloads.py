"""How many pods a workload has, and how that is changed: by kind."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from controller.kube.objects import Object
from controller.kube.wanted.world import Fleet, Patch

LWS_REASON = "a LeaderWorkerSet makes all pods of a group anew when its size changes"
LWS_REMEDY = (
    "serve it as a StatefulSet of which each pod is a rank, or as a RayCluster, with an engine "
    "that changes its width while it serves"
)
RAY_REASON = "the RayCluster's own autoscaler changes the group's replicas"
RAY_REMEDY = "set spec.enableInTreeAutoscaling of the RayCluster to false"


def why_not_live(fleet: Fleet, workload: Object | None) -> tuple[str, str]:
    """Why the width of these engines cannot change while they serve, and what would make it
    possible, as far as the workload's kind tells; empty if it can."""
    kind = fleet.reference["kind"] if fleet.reference else ""
    if kind == "LeaderWorkerSet":
        return LWS_REASON, LWS_REMEDY
    if kind == "RayCluster" and workload is not None and workload["autoscales"]:
        return RAY_REASON, RAY_REMEDY
    return "", ""


def group_of(fleet: Fleet, workload: Object | None) -> Mapping[str, Any] | None:
    """What has replicas: the workload, or the worker group of a RayCluster. None if it is not
    there."""
    if fleet.reference is None or workload is None:
        return None
    if fleet.reference["kind"] != "RayCluster":
        return workload
    name = fleet.reference.get("workerGroup")
    return next((one for one in workload["groups"] if one["name"] == name), None)


def resized(
    fleet: Fleet, workload: Object, replicas: int, why: str, gone: Collection[str] = ()
) -> Patch:
    """Refused by the server if anybody changed the workload since. gone: names of the pods that
    should be the ones which go, where a kind lets one choose."""
    version = workload["metadata"]["resourceVersion"]
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
    path = "/spec"
    body: list[Mapping[str, Any]] = [test]
    if fleet.reference is not None and fleet.reference["kind"] == "RayCluster":
        names = [one["name"] for one in workload["groups"]]
        index = names.index(fleet.reference["workerGroup"])
        path = f"/spec/workerGroupSpecs/{index}"
        body.append({"op": "test", "path": f"{path}/groupName", "value": names[index]})
        if gone:
            strategy = {"workersToDelete": sorted(gone)}
            # "add" sets the field whether it is there or not.
            body.append({"op": "add", "path": f"{path}/scaleStrategy", "value": strategy})
    return Patch([*body, {"op": "add", "path": f"{path}/replicas", "value": replicas}], why)


def removable(
    fleet: Fleet, pods: Sequence[Object], released: Collection[str]
) -> tuple[list[str], str]:
    """Names of released pods that go if the replicas are lowered by as many, and why others cannot.

    A StatefulSet removes its highest ordinals. A Deployment removes pods that are not ready first,
    and of those that are any. KubeRay removes those that it is told.
    """
    kind = fleet.reference["kind"] if fleet.reference else ""
    mine = {one["metadata"]["name"] for one in pods if one["metadata"]["uid"] in released}
    if not mine:
        return [], ""
    found: list[str] = []
    if kind == "RayCluster":
        found = sorted(mine)
    elif kind == "StatefulSet":
        for name in sorted((one["metadata"]["name"] for one in pods), key=ordinal, reverse=True):
            if name not in mine:
                break
            found.append(name)
    elif kind == "Deployment":
        ready = {one["metadata"]["name"] for one in pods if one["ready"]}
        if others := {one["metadata"]["name"] for one in pods} - ready - mine:
            return [], f"{', '.join(sorted(others))} would go first, as not ready: wait for it"
        found = sorted(mine - ready)
    left = sorted(mine - set(found))
    return found, _stays(kind, left) if left else ""


def ordinal(name: str) -> int:
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _stays(kind: str, names: Sequence[str]) -> str:
    told = ", ".join(names)
    if kind == "StatefulSet":
        return f"no engine needs {told}, and a StatefulSet removes its highest ordinals only"
    return (
        f"no engine needs {told}, and a Deployment could remove another pod that is ready: delete "
        "it and lower the replicas, or let it become not ready"
    )
