"""Which pods are a fleet's: by its selector, or by that of the workload that it refers to."""

from collections.abc import Mapping
from typing import Any

from controller.kube.objects import (
    DEPLOYMENTS,
    LWS_NAME,
    RAY_CLUSTER,
    RAY_GROUP,
    STATEFUL_SETS,
    Object,
)

MAKERS = (STATEFUL_SETS.name, DEPLOYMENTS.name)  # whose selectors are whatever somebody wrote


def selector_of(spec: Mapping[str, Any], workload: Object | None) -> dict[str, Any]:
    """Empty if the workload is not there: then no pod is the fleet's."""
    given = spec["workload"]
    if "reference" not in given:
        return dict(given["selector"])
    name, kind = given["reference"]["name"], given["reference"]["kind"]
    if workload is None:
        return {}
    if kind == "RayCluster":
        return {"matchLabels": {RAY_CLUSTER: name, RAY_GROUP: given["reference"]["workerGroup"]}}
    if kind == "LeaderWorkerSet":
        return {"matchLabels": {LWS_NAME: name}}
    return dict(workload["selector"])


def has(spec: Mapping[str, Any], selector: Mapping[str, Any], pod: Object) -> bool:
    """Whether a pod is the fleet's. Selectors of two workloads may overlap; whose a pod is, is then
    told by who made it."""
    if not matches(selector, pod["metadata"].get("labels") or {}):
        return False
    reference, maker = spec["workload"].get("reference"), pod["maker"]
    if reference is None or reference["kind"] not in MAKERS or not any(maker):
        return True
    return bool(maker == (reference["kind"], reference["name"]))


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels") or {}
    conditions = selector.get("matchExpressions") or []
    if not wanted and not conditions:
        return False
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(one, labels) for one in conditions)


def text_of(selector: Mapping[str, Any]) -> str:
    """As /scale and `kubectl get -l` take it."""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for one in selector.get("matchExpressions") or []:
        key, operator, values = one["key"], one["operator"], ",".join(one.get("values") or [])
        parts.append({
            "In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})",
            "Exists": key, "DoesNotExist": f"!{key}",
        }[operator])  # fmt: skip
    return ",".join(parts)


def _holds(condition: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, operator = condition["key"], condition["operator"]
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    is_in = labels.get(key) in (condition.get("values") or [])
    return is_in if operator == "In" else not is_in
