"""Objects as no schema would let them in: those of a release before, or of another operator's kind.
One that makes no sense is one's own trouble: the others are looked after."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator  # type: ignore[import-untyped]

from controller.kube.caches import Caches
from controller.kube.objects import (
    DEPLOYMENTS,
    FLEETS,
    LEADER_WORKER_SETS,
    NODES,
    PLANS,
    PODS,
    RAY_CLUSTERS,
    STATEFUL_SETS,
    Kind,
)  # fmt: skip
from controller.kube.wanted import news, selectors
from controller.kube.wanted.reconcile import reconcile
from controller.kube.wanted.world import Fleet, Seen, World
from placer.virtual_clock import VirtualClock
from tests.controller.kube.tiny_api import TinyApi
from tests.controller.kube.tiny_fleet import DIGEST, NOW, plan, pool

LABELS = {"app": "chat", "ray.io/cluster": "chat", "ray.io/group": "gpus"}
CONTAINERS = {"containers": [{"resources": {"limits": {"nvidia.com/gpu": "8"}}}]}
SELECTOR = {
    "matchLabels": {"app": "chat"},
    "matchExpressions": [{"key": "app", "operator": "In", "values": ["chat"]}],
}
WORKLOADS: list[Any] = [
    {"reference": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "chat"}},
    {"reference": {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "chat", "workerGroup": "gpus",
    }},
    {"selector": SELECTOR},
]  # fmt: skip
REST: Any = {
    "model": "m", "pool": "moe.chat", "topology": {"fromNodeLabels": True}, "redundancy": 4,
    "mode": "advisory", "objective": {"dispatch": "dedup", "maxMoved": 0.1}, "guard": 0.1,
    "budgets": [{"reasons": ["Scale"], "schedule": "0 22 * * *", "duration": "8h"},
                {"bytesPerMinute": "10G"}],
    "width": {"ranks": 4, "minRanks": 2}, "slo": {"ttftMilliseconds": 500, "attainment": 0.9},
    "preScheduling": {"enabled": True, "controlPercent": 5},
}  # fmt: skip
PLAN: Any = {
    "fleet": "chat",
    "pool": "moe.chat",
    "planId": "plan-1",
    "digest": DIGEST,
    "epoch": 5,
    "ledgerId": "ledger-1",
    "approval": {"approved": True, "digest": DIGEST, "by": "alice"},
}
STATUS: Any = {
    "phase": "Proposed", "balancedness": "0.61", "plans": {"applied": "chat-1", "proposed": "a"},
    "width": {"desired": 2, "allocated": 2, "available": 2, "engineActive": 2, "traffic": 2},
    "decision": {"outcome": "hold", "reason": "0 tokens", "at": "2026-01-01T00:00:00Z"},
    "operation": {"id": "op-1", "queue": 0}, "liveWidth": {"possible": True}, "pool": "moe.chat",
    "conditions": [{
        "type": "Ready", "status": "True", "reason": "Serving", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }],
    "acknowledgements": [{"rank": 0, "state": "Applied"}],
}  # fmt: skip
TEMPLATE = {"metadata": {"labels": LABELS}, "spec": CONTAINERS}
OTHERS: list[tuple[Kind, Any]] = [
    (PODS, {"nodeName": "node", **CONTAINERS}),
    (NODES, {}),
    (STATEFUL_SETS, {"replicas": 2, "selector": SELECTOR, "template": TEMPLATE}),
    (DEPLOYMENTS, {"replicas": 2, "selector": SELECTOR, "template": TEMPLATE}),
    (LEADER_WORKER_SETS, {"replicas": 1, "leaderWorkerTemplate": {"size": 2}}),
    (RAY_CLUSTERS, {"enableInTreeAutoscaling": False, "workerGroupSpecs": [
        {"groupName": "gpus", "replicas": 2, "maxReplicas": 4, "template": TEMPLATE}]}),
]  # fmt: skip
MATTERS = ("type", "required", "items", "properties")  # words are told anew
NONSENSE: tuple[Any, ...] = (
    None,
    "",
    "x y",
    5,
    -1,
    True,
    [],
    {},
    [None],
    [5],
    {"a": 5},
    {"a": None},
)


def variants(spec: Any) -> Iterator[Any]:
    """With something else, or nothing, at each place."""
    yield from (deepcopy(one) for one in NONSENSE)
    keys = list(spec) if isinstance(spec, dict) else range(len(spec))
    for key in keys:
        rest = deepcopy(spec)
        del rest[key]
        yield rest
        for one in variants(spec[key]) if isinstance(spec[key], dict | list) else NONSENSE:
            changed = deepcopy(spec)
            changed[key] = deepcopy(one)
            yield changed


def heard(caches: Caches, kind: Kind, spec: Any, name: str = "chat", status: Any = None) -> None:
    meta = {
        "name": name, "uid": f"uid-{name}", "resourceVersion": "1", "labels": LABELS,
        **({"namespace": "moe"} if kind.namespaced else {}),
    }  # fmt: skip
    for one in caches._of[kind]:
        one.objects.clear()
        one._take("ADDED", {"metadata": meta, "spec": spec, "status": status or {}})


def looked_at(caches: Caches) -> list[str]:
    """As the operator does. Of each fleet, why it is ready or not."""
    ready = []
    for one in list(caches.all(FLEETS)):
        fleet = Fleet(one)
        workload = caches.workload(fleet)
        selector = selectors.selector_of(fleet.spec, workload)
        pods = caches.pods(fleet, selector)
        seen = Seen(ledger="ledger-1", pool=pool(), plans={"plan-1": plan(pool="moe.chat")})
        found = reconcile(World(
            fleet=fleet, seen=seen, now=NOW, first=caches.first(fleet, pods), workload=workload,
            selector=selector, pods=pods, products=caches.products(pods),
            plans=caches.plans(fleet),
        ))  # fmt: skip
        news.of_fleet(fleet.status, found.status)
        for name in found.statuses:
            before = caches.get(PLANS, ("moe", name))
            assert before is not None
            news.of_plan(name, before["status"], found.statuses[name])
        ready.append(found.status["conditions"][0]["reason"])
    return ready


def world(workload: Any) -> Caches:
    api: Any = TinyApi()
    caches = Caches(api, ["moe"], VirtualClock(), lambda _: None)
    heard(caches, FLEETS, {"workload": workload, **REST})
    for kind, spec in OTHERS:
        heard(caches, kind, spec)
    heard(caches, PLANS, PLAN)
    return caches


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_fleet_of_nonsense_ends_nobody(workload: Any) -> None:
    caches = world(workload)
    for spec in variants({"workload": workload, **REST}):
        heard(caches, FLEETS, spec)
        for kind, other in OTHERS:
            heard(caches, kind, other)
        looked_at(caches)


def test_a_status_of_nonsense_is_said_anew() -> None:
    spec = {"workload": WORKLOADS[0], **REST, "topology": {"preset": "h100"}}
    caches = world(WORKLOADS[0])
    heard(caches, FLEETS, spec)
    [fine] = looked_at(caches)
    for status in variants(STATUS):
        heard(caches, FLEETS, spec, status=status)
        heard(caches, PLANS, PLAN, status=status)
        assert looked_at(caches) == [fine], status


@pytest.mark.parametrize("kind", [FLEETS, PLANS])
def test_of_a_status_nothing_is_kept_that_its_schema_refuses(kind: Kind) -> None:
    """While a fleet stands still or the controller is away, all else stays as it was said last."""
    path = Path(__file__).parents[3] / f"helm/placer-crds/templates/{kind.plural}.yaml"
    version = yaml.safe_load(path.read_text())["spec"]["versions"][0]
    schema = Draft7Validator(version["schema"]["openAPIV3Schema"]["properties"]["status"])
    caches, spec = world(WORKLOADS[0]), {"workload": WORKLOADS[0], **REST}
    for status in variants(STATUS):
        heard(caches, kind, PLAN if kind is PLANS else spec, status=status)
        found = caches.get(kind, ("moe", "chat"))
        assert found is not None
        errors = [one for one in schema.iter_errors(found["status"]) if one.validator in MATTERS]
        assert errors == [], status


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_plan_of_nonsense_ends_nobody(workload: Any) -> None:
    caches = world(workload)
    for spec in variants(PLAN):
        heard(caches, PLANS, spec)
        looked_at(caches)


@pytest.mark.parametrize("kind", [LEADER_WORKER_SETS, RAY_CLUSTERS])
def test_a_workload_of_nonsense_ends_nobody(kind: Kind) -> None:
    """Of kinds whose schema is whoever's who installed them."""
    for workload in WORKLOADS:
        caches = world(workload)
        for spec in variants(dict(OTHERS)[kind]):
            heard(caches, kind, spec)
            looked_at(caches)
