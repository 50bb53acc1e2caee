"""The kinds of objects that the operator knows, and what it keeps of each: with thousands of pods
that is what its memory is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

Object: TypeAlias = dict[str, Any]
Trim: TypeAlias = Callable[[Object], Object]


@dataclass(frozen=True, slots=True)
class Kind:
    """group: empty for the core one"""

    name: str
    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        base = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        where = f"namespaces/{quote(namespace)}" if self.namespaced and namespace else ""
        parts = (base, where, self.plural, quote(name), subresource)
        return "/".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Event:
    """What was decided about an object, and why."""

    reason: str
    message: str
    is_warning: bool = False


FLEETS = Kind("MoEFleet", "moefleets", "placer.dev", "v1alpha1")
PLANS = Kind("PlacementPlan", "placementplans", "placer.dev", "v1alpha1")
PODS = Kind("Pod", "pods")
NODES = Kind("Node", "nodes", namespaced=False)
DEPLOYMENTS = Kind("Deployment", "deployments", "apps")
STATEFUL_SETS = Kind("StatefulSet", "statefulsets", "apps")
LEADER_WORKER_SETS = Kind("LeaderWorkerSet", "leaderworkersets", "leaderworkerset.x-k8s.io")
RAY_CLUSTERS = Kind("RayCluster", "rayclusters", "ray.io")
WORKLOADS = (DEPLOYMENTS, STATEFUL_SETS, LEADER_WORKER_SETS, RAY_CLUSTERS)

PRODUCT = "nvidia.com/gpu.product"
GPUS = ("nvidia.com/gpu", "amd.com/gpu", "huawei.com/Ascend910")
RAY_GROUP, RAY_CLUSTER = "ray.io/group", "ray.io/cluster"
LWS_NAME = "leaderworkerset.sigs.k8s.io/name"
_KEPT = (
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp",
)  # fmt: skip


def _meta(found: Object, *more: str) -> Object:
    meta = found["metadata"]
    return {key: meta[key] for key in (*_KEPT, *more) if key in meta}


def fleet(found: Object) -> Object:
    """Of one whose workload makes no sense, as an earlier schema may have let it in, that it does
    not is all that is kept."""
    spec = found.get("spec")
    if not _has_workload(spec):
        spec = {"workload": {"selector": {}}, "fault": "spec.workload names no workload"}
    return _own(FLEETS, found, spec)


def plan(found: Object) -> Object:
    """All but which ranks it moves experts between."""
    must = {"fleet": "", "pool": "", "planId": "", "digest": "", "epoch": 0, "ledgerId": ""}
    spec = {key: value for key, value in found.get("spec", {}).items() if key != "moves"}
    return _own(PLANS, found, must | spec)


def _own(kind: Kind, found: Object, spec: Any) -> Object:
    return {
        "apiVersion": kind.api_version, "kind": kind.name, "metadata": _meta(found),
        "spec": spec, "status": found.get("status") or {},
    }  # fmt: skip


def _has_workload(spec: Any) -> bool:
    given = spec.get("workload") if isinstance(spec, dict) else None
    if not isinstance(given, dict):
        return False
    reference, selector = given.get("reference"), given.get("selector")
    if isinstance(reference, dict):
        kinds = [kind.name for kind in WORKLOADS]
        return reference.get("kind") in kinds and isinstance(reference.get("name"), str)
    return isinstance(selector, dict)


def pod(found: Object) -> Object:
    status = found.get("status", {})
    ready = any(
        one.get("type") == "Ready" and one.get("status") == "True"
        for one in status.get("conditions", [])
    )
    return {
        "metadata": _meta(found, "labels"),
        "node": found.get("spec", {}).get("nodeName", ""),
        "ready": ready and "deletionTimestamp" not in found["metadata"],
        "ended": status.get("phase") in ("Succeeded", "Failed"),
        "gpus": _gpus(found.get("spec", {})),
    }


def node(found: Object) -> Object:
    labels = found["metadata"].get("labels", {})
    return {"metadata": _meta(found), "product": labels.get(PRODUCT, "")}


def workload(kind: Kind) -> Trim:
    def trim(found: Object) -> Object:
        spec = found.get("spec", {})
        kept = {
            "kind": kind.name, "metadata": _meta(found), "replicas": spec.get("replicas", 1),
            "selector": spec.get("selector") or {},
            "gpus": _gpus(spec.get("template", {}).get("spec", {})),
        }  # fmt: skip
        if kind is RAY_CLUSTERS:
            kept["autoscales"] = bool(spec.get("enableInTreeAutoscaling"))
            kept["groups"] = [
                {
                    "name": one.get("groupName", ""), "replicas": one.get("replicas", 0),
                    "gpus": _gpus(one.get("template", {}).get("spec", {})),
                    "most": one.get("maxReplicas"),
                }
                for one in spec.get("workerGroupSpecs", [])
            ]  # fmt: skip
        return kept

    return trim


def _gpus(spec: Mapping[str, Any]) -> int:
    """That a pod of this spec has; 0 if it asks for none."""
    found = 0
    for container in spec.get("containers", []):
        limits = (container.get("resources") or {}).get("limits") or {}
        found += sum(int(limits[name]) for name in GPUS if str(limits.get(name, "")).isdigit())
    return found


TRIMS: dict[Kind, Trim] = {
    FLEETS: fleet, PLANS: plan, PODS: pod, NODES: node,
    **{kind: workload(kind) for kind in WORKLOADS},
}  # fmt: skip
