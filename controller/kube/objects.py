"""The kinds of objects that the operator knows, and what it keeps of each: with thousands of pods
that is what its memory is made of."""

import re
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
REPLICA_SET = "ReplicaSet"
LWS_NAME = "leaderworkerset.sigs.k8s.io/name"
OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_PLAN = {"fleet": "", "pool": "", "planId": "", "digest": "", "epoch": 0, "ledgerId": ""}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
# What a status is like: a value of the kind, or a pattern of texts.
_STATUS: dict[str, Any] = {
    "observedGeneration": 0, "pool": "", "ledger": "", "engines": 0, "selector": "", "phase": "",
    "width": dict.fromkeys(("desired", "allocated", "available", "engineActive", "traffic"), 0),
    "liveWidth": {"possible": True, "reason": "", "remedy": ""},
    "decision": {"outcome": "", "reason": "", "at": _TIME},
    "plans": {"applied": "", "proposed": ""},
    "operation": {"id": "", "kind": "", "phase": "", "progress": "", "queue": 0},
    "balancedness": re.compile(r"\d+(\.\d+)?"),
    "conditions": [{
        "type": re.compile("Ready|Reconciling|Stalled"),
        "status": re.compile("True|False|Unknown"), "reason": re.compile(".+"),
        "lastTransitionTime": _TIME, "message": "", "observedGeneration": 0,
    }],
    "acknowledgements": [{
        "engine": "", "rank": 0, "pod": "", "epoch": 0, "digest": "", "state": "", "reason": "",
    }],
}  # fmt: skip
_NEEDED = {
    "decision": {"outcome", "reason", "at"},
    "conditions": {"type", "status", "reason", "lastTransitionTime"},
    "acknowledgements": {"rank"},
}
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
    if fault := _fault(spec):
        spec = {"workload": {"selector": {}}, "fault": fault}
    return _own(FLEETS, found, spec)


def plan(found: Object) -> Object:
    """What is compared with the controller's plan, without what makes no sense."""
    said = _dict(found.get("spec"))
    spec = {key: said[key] if _is_a(type(empty), said.get(key)) else empty
            for key, empty in _PLAN.items()}  # fmt: skip
    approval = _dict(said.get("approval"))
    if all(_is_a(str, approval.get(key, "")) for key in ("digest", "by")) and approval:
        spec["approval"] = approval
    return {**_own(PLANS, found, spec), "owner": _owner(found).get("uid", "")}


def _owner(found: Object) -> Object:
    """The reference to whose it is; empty if it is nobody's."""
    owners = found["metadata"].get("ownerReferences") or []
    return next((dict(one) for one in owners if one.get("controller")), {})


def _maker(found: Object) -> tuple[str, str]:
    """Kind and name of the workload that made a pod; both empty if none did."""
    owner = _owner(found)
    kind, name = owner.get("kind", ""), owner.get("name", "")
    if kind == REPLICA_SET:  # of a Deployment, with the hash of its template behind the name
        return DEPLOYMENTS.name, name.rpartition("-")[0]
    return kind, name


def _own(kind: Kind, found: Object, spec: Any) -> Object:
    return {
        "apiVersion": kind.api_version, "kind": kind.name, "metadata": _meta(found),
        "spec": spec, "status": _status(_dict(found.get("status"))),
    }  # fmt: skip


def _status(said: Object) -> Object:
    """Without what makes no sense, which the server would refuse again: it is said anew."""
    return {key: value for key, value in said.items() if _makes_sense(key, value)}


def _makes_sense(key: str, value: Any) -> bool:
    """What is not known is left to its schema."""
    if key not in _STATUS:
        return True
    parts = value if isinstance(value, list) else [value]
    needed = _NEEDED.get(key, set())
    return _is_like(value, _STATUS[key]) and all(not needed or needed <= set(one) for one in parts)


def _is_like(value: Any, example: Any) -> bool:
    if isinstance(example, re.Pattern):
        return isinstance(value, str) and example.fullmatch(value) is not None
    if not _is_a(type(example), value):
        return False
    if isinstance(example, list):
        return all(_is_like(one, example[0]) for one in value)
    if isinstance(example, dict):
        return all(_is_like(value[key], example[key]) for key in value.keys() & example.keys())
    return True


def _fault(spec: Any) -> str:
    """Why nothing can be told apart by it; empty if all that caches look at makes sense."""
    if not isinstance(spec, dict) or not _is_workload(_dict(spec.get("workload"))):
        return "spec.workload names no workload"
    for name, kind in (("pool", str), ("topology", dict)):
        if spec.get(name) is not None and not isinstance(spec[name], kind):
            return f"spec.{name} is {spec[name]!r}, which is none"
    return ""


def _is_workload(given: Mapping[str, Any]) -> bool:
    reference = given.get("reference")
    if not isinstance(reference, dict):
        return _is_selector(given.get("selector"))
    kind = reference.get("kind")
    group = reference.get("workerGroup", "" if kind != RAY_CLUSTERS.name else None)
    is_known = kind in [one.name for one in WORKLOADS]
    return is_known and isinstance(reference.get("name"), str) and isinstance(group, str)


def _is_selector(given: Any) -> bool:
    if not isinstance(given, dict):
        return False
    labels, conditions = given.get("matchLabels") or {}, given.get("matchExpressions") or []
    return isinstance(labels, dict) and isinstance(conditions, list) and all(
        isinstance(one, dict) and isinstance(one.get("key"), str)
        and one.get("operator") in OPERATORS and isinstance(one.get("values") or [], list)
        for one in conditions
    )  # fmt: skip


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_a(kind: type, value: Any) -> bool:
    """True is no number."""
    return type(value) is kind


def pod(found: Object) -> Object:
    status = found.get("status", {})
    ready = any(
        one.get("type") == "Ready" and one.get("status") == "True"
        for one in status.get("conditions", [])
    )
    return {
        "metadata": _meta(found, "labels"),
        "maker": _maker(found),
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
        spec = _dict(found.get("spec"))
        kept = {
            "kind": kind.name, "metadata": _meta(found),
            "replicas": _count(spec.get("replicas"), 1), "selector": _dict(spec.get("selector")),
            "gpus": _gpus(_dict(spec.get("template")).get("spec")),
        }  # fmt: skip
        if kind is RAY_CLUSTERS:
            kept["autoscales"] = bool(spec.get("enableInTreeAutoscaling"))
            kept["groups"] = [_group(_dict(one)) for one in _list(spec.get("workerGroupSpecs"))]
        return kept

    return trim


def _group(of: Mapping[str, Any]) -> Object:
    most = of.get("maxReplicas")
    return {
        "name": str(of.get("groupName") or ""), "replicas": _count(of.get("replicas"), 0),
        "gpus": _gpus(_dict(of.get("template")).get("spec")),
        "most": most if _is_a(int, most) else None,
    }  # fmt: skip


def _count(value: Any, otherwise: int) -> int:
    return int(value) if _is_a(int, value) else otherwise


def _gpus(spec: Any) -> int:
    """That a pod of this spec has; 0 if it asks for none."""
    found = 0
    for container in map(_dict, _list(_dict(spec).get("containers"))):
        limits = _dict(_dict(container.get("resources")).get("limits"))
        found += sum(int(limits[name]) for name in GPUS if str(limits.get(name, "")).isdigit())
    return found


TRIMS: dict[Kind, Trim] = {
    FLEETS: fleet, PLANS: plan, PODS: pod, NODES: node,
    **{kind: workload(kind) for kind in WORKLOADS},
}  # fmt: skip
