"""The smallest fleet and plan that a server takes, and changes of them."""

from copy import deepcopy
from typing import Any

DIGEST = "sha256:" + "0123456789abcdef" * 4
GONE = object()  # as a value: the key is left out
_FLEET = {
    "workload": {"reference": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "chat"}},
    "model": "deepseek-ai/DeepSeek-V3",
}
_PLAN = {
    "fleet": "chat",
    "pool": "default.chat",
    "planId": "plan-1",
    "digest": DIGEST,
    "epoch": 1,
    "ledgerId": "ledger-1",
    "score": {"before": 0.010, "after": 0.008, "gain": 0.2},
    "reasons": ["the MoE layers of a step take 20% less time"],
    "moves": {"experts": 3, "bytes": 1000, "ranks": [{"rank": 0, "in": 2, "out": 1}]},
}


def changed(spec: Any, path: str, value: Any) -> Any:
    """A copy with another value at ``a.b.c``; lists are given whole."""
    copy = deepcopy(spec)
    at, *rest = path.split(".", 1)
    if rest:
        copy[at] = changed(copy.get(at, {}), rest[0], value)
    elif value is GONE:
        copy.pop(at, None)
    else:
        copy[at] = value
    return copy


def _object(kind: str, name: str, namespace: str, spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "placer.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def fleet(changes: Any = (), name: str = "chat", namespace: str = "default") -> dict[str, Any]:
    """changes: pairs of path and value in its spec"""
    spec: Any = _FLEET
    for path, value in changes:
        spec = changed(spec, path, value)
    return _object("MoEFleet", name, namespace, spec)


def plan(changes: Any = (), name: str = "chat-1", namespace: str = "default") -> dict[str, Any]:
    spec: Any = _PLAN
    for path, value in changes:
        spec = changed(spec, path, value)
    return _object("PlacementPlan", name, namespace, spec)
