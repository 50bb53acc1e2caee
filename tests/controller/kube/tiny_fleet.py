"""A fleet of two pods and one engine, and what follows from changes of it."""

from dataclasses import replace
from typing import Any

from controller.kube.wanted.reconcile import reconcile
from controller.kube.wanted.world import Call, Fleet, Seen, Wanted, World
from placer.v1 import fleet_pb2, placement_pb2, policy_pb2

MODEL, POOL, NOW = "DeepSeek-V3", "moe.chat", 1_000_000.0
DIGEST = "sha256:" + "ab" * 32
SEEN = {"replicas": 2, "metadata": {"resourceVersion": "7"}, "gpus": 0, "kind": "StatefulSet"}


def fleet(name: str = "chat", made: str = "2026-01-01", generation: int = 1, **spec: Any) -> Fleet:
    reference = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "chat"}
    status = spec.pop("status", {})
    return Fleet({
        "apiVersion": "placer.dev/v1alpha1", "kind": "MoEFleet",
        "metadata": {
            "name": name, "namespace": "moe", "uid": f"uid-{name}", "generation": generation,
            "creationTimestamp": made,
        },
        "spec": {
            "workload": {"reference": reference}, "model": MODEL, "topology": {"preset": "h100"},
            **spec,
        },
        "status": status,
    })  # fmt: skip


def pod(number: int, ready: bool = True, **changes: Any) -> dict[str, Any]:
    meta = {"name": f"chat-{number}", "uid": f"uid-{number}", "labels": {"app": "chat"}}
    found = {
        "metadata": meta,
        "maker": ("", ""),
        "node": "node-1",
        "ready": ready,
        "ended": False,
        "gpus": 0,
    }
    return {**found, **changes}


def pool(ranks: int = 2, engines: int = 1, **changes: Any) -> Any:
    found = fleet_pb2.Pool(name=POOL, model=MODEL, **changes)
    for number in range(engines):
        found.engines.add(name=f"engine-{number}", ranks=ranks)
    return found


def workload(replicas: int = 2, kind: str = "StatefulSet", **changes: Any) -> dict[str, Any]:
    return {
        "kind": kind, "metadata": {"name": "chat", "resourceVersion": "7"}, "replicas": replicas,
        "selector": {"matchLabels": {"app": "chat"}}, "gpus": 0, **changes,
    }  # fmt: skip


def plan(**changes: Any) -> Any:
    said: dict[str, Any] = {
        "id": "plan-1", "pool": POOL, "state": placement_pb2.PLAN_STATE_PROPOSED, "version": 3,
        "digest": DIGEST, "epoch": 5, "ledger_id": "ledger-1", "reason": "it pays",
    }  # fmt: skip
    return placement_pb2.Plan(**(said | changes))


NAME = "chat-ababababab-5"  # of that plan's object


def plan_object(phase: str = "Proposed", approval: Any = None, **spec: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "fleet": "chat", "pool": POOL, "planId": "plan-1", "digest": DIGEST, "epoch": 5,
        "ledgerId": "ledger-1", **spec,
    }  # fmt: skip
    if approval is not None:
        said["approval"] = approval
    meta = {"name": NAME, "namespace": "moe", "uid": "uid-plan", "generation": 1}
    return {"metadata": meta, "spec": said, "status": {"phase": phase}}


APPROVED = {"approved": True, "digest": DIGEST, "by": "alice"}


def scaled(phase: str = "SUCCEEDED", **changes: Any) -> Any:
    number = fleet_pb2.OperationPhase.Value(f"OPERATION_PHASE_{phase}")
    said: dict[str, Any] = {"id": "op-1", "kind": "scale", "phase": number}
    return fleet_pb2.Operation(**(said | changes))


def world(of: Fleet | None = None, **changes: Any) -> World:
    """One where nothing is to be done. changes: of it, or of what the controller says; its
    PlacementPlans are ``objects``"""
    checked = frozenset(f"uid-chat/possible/1/{ranks}" for ranks in range(100))
    seen = Seen(ledger="ledger-1", pool=pool(), checked=checked)
    said = {key: changes.pop(key) for key in list(changes) if key in Seen.__slots__}
    found = World(
        fleet=of or fleet(), seen=replace(seen, **said), now=NOW, workload=workload(),
        selector={"matchLabels": {"app": "chat"}}, pods=[pod(0), pod(1)],
    )  # fmt: skip
    return replace(found, plans=changes.pop("objects", ()), **changes)


def put(of: World) -> World:
    """Once the controller has its policy and has heard of its pods."""
    calls = {call.method: call.request for call in reconcile(of).calls}
    kept, request = of.seen.policy, calls.get("PutPolicy")
    if request is not None:
        kept = policy_pb2.Policy(policy=request.policy, reason=request.reason, version=1)
    reported = calls.get("ReportCapacity", of.seen.reported)
    return replace(of, seen=replace(of.seen, policy=kept, reported=reported))


def wanted(of: Fleet | None = None, **changes: Any) -> Wanted:
    """Beside its policy and its pods."""
    return reconcile(put(world(of, **changes)))


def call(found: Wanted) -> Call:
    [only] = found.calls
    return only


def condition(found: Wanted, of: str = "Ready") -> tuple[str, str, str]:
    [one] = [one for one in found.status["conditions"] if one["type"] == of]
    return one["status"], one["reason"], one["message"]
