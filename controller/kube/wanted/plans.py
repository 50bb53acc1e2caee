"""The controller's plans as PlacementPlans, and what people make of those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controller.kube.objects import PLANS, Object
from controller.kube.wanted import conditions
from controller.kube.wanted.world import Call, Fleet, World
from placer.v1 import placement_pb2

State = placement_pb2.PlanState
PHASES = {
    placement_pb2.PLAN_STATE_PROPOSED: "Proposed", placement_pb2.PLAN_STATE_APPROVED: "Approved",
    placement_pb2.PLAN_STATE_APPLYING: "Applying", placement_pb2.PLAN_STATE_APPLIED: "Applied",
    placement_pb2.PLAN_STATE_ROLLED_BACK: "RolledBack",
    placement_pb2.PLAN_STATE_SUPERSEDED: "Superseded",
    placement_pb2.PLAN_STATE_REJECTED: "Rejected", placement_pb2.PLAN_STATE_HALTED: "Halted",
}  # fmt: skip
ENDED = ("RolledBack", "Superseded", "Rejected")
TO_SHOW = ("Proposed", "Approved", "Applying")
KEPT = 10  # of those that have ended, the newest
RANKS = 64


@dataclass(slots=True)
class Plans:
    """
    new:     placement_pb2.Plan that should be objects
    foreign: a sentence about approvals that nothing will act on
    """

    applied: str = ""
    proposed: str = ""
    calls: list[Call] = field(default_factory=list)
    new: list[Any] = field(default_factory=list)
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)
    obsolete: list[Object] = field(default_factory=list)
    foreign: str = ""


def plans_of(world: World) -> Plans:
    found, seen = Plans(), world.seen
    # Of a fleet of that name that is gone: they go, though nobody rejected what they are of.
    others = [one for one in world.plans if one.get("owner", "") not in ("", world.fleet.uid)]
    left = {one["metadata"]["name"] for one in others}
    objects = {
        one["metadata"]["name"]: one for one in world.plans if one["metadata"]["name"] not in left
    }
    for plan in seen.plans.values():
        name = name_of(world.fleet, plan)
        if name in objects:
            if PHASES.get(plan.state) == "Applied" and not found.applied:
                found.applied = name
            if PHASES.get(plan.state) in ("Proposed", "Approved") and not found.proposed:
                found.proposed = name
        elif PHASES.get(plan.state) in TO_SHOW and plan.digest:
            _missing(world, name, plan, found, was_anothers=name in left)
    approved = []
    for name, one in sorted(objects.items()):
        plan, why = _of(world, one)
        if plan is None and not why:
            continue  # it is being asked for
        status = _status(world, one, plan, why)
        if status != one.get("status"):
            found.statuses[name] = status
        approval = one["spec"].get("approval") or {}
        if plan is not None and approval.get("approved"):
            _approve(world, one, plan, approval, found)
        elif approval.get("approved") and status["phase"] == "Foreign":
            approved.append(f"{name} {why}")
    if approved:
        found.foreign = f"{'; '.join(approved)}: delete it, and approve one of this controller's"
    _prune(objects.values(), found)
    found.obsolete += others
    return found


def name_of(fleet: Fleet, plan: Any) -> str:
    return f"{fleet.name}-{plan.digest.removeprefix('sha256:')[:10]}-{plan.epoch}"


def body_of(fleet: Fleet, plan: Any, moves: Sequence[Mapping[str, Any]]) -> Object:
    """A PlacementPlan to be made. moves: of its file"""
    spec: dict[str, Any] = {
        "fleet": fleet.name, "pool": plan.pool, "planId": plan.id, "digest": plan.digest,
        "epoch": plan.epoch, "ledgerId": plan.ledger_id, "score": {"gain": round(plan.gain, 4)},
        "reasons": [text[:2048] for text in plan.reasons or (plan.reason,)][:16],
        "moves": {"experts": plan.moved, "bytes": plan.moved_bytes, "ranks": _ranks(moves)},
    }  # fmt: skip
    if plan.HasField("score_before_s"):
        spec["score"] |= {"before": plan.score_before_s, "after": plan.score_after_s}
    return {
        "apiVersion": PLANS.api_version, "kind": PLANS.name,
        "metadata": {
            "name": name_of(fleet, plan), "namespace": fleet.namespace,
            "labels": {"placer.dev/fleet": fleet.name},
            "ownerReferences": [{
                "apiVersion": fleet.object["apiVersion"], "kind": fleet.object["kind"],
                "name": fleet.name, "uid": fleet.uid, "controller": True,
            }],
        },
        "spec": spec,
    }  # fmt: skip


def _ranks(moves: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Of those with the most. What goes out of a rank are copies for others."""
    comes: dict[int, int] = {}
    goes: dict[int, int] = {}
    for move in moves:
        comes[move["gpu"]] = comes.get(move["gpu"], 0) + 1
        if move.get("source") is not None:
            goes[move["source"]] = goes.get(move["source"], 0) + 1
    most = sorted(
        comes.keys() | goes.keys(),
        key=lambda rank: (-comes.get(rank, 0) - goes.get(rank, 0), rank),
    )
    return [
        {"rank": rank, "in": comes.get(rank, 0), "out": goes.get(rank, 0)}
        for rank in sorted(most[:RANKS])
    ]


def _missing(world: World, name: str, plan: Any, found: Plans, was_anothers: bool) -> None:
    """One that was there while it waited, and is not any more, was deleted by somebody."""
    before = (world.fleet.status.get("plans") or {}).get("proposed")
    if was_anothers or name != before or PHASES[plan.state] != "Proposed":
        found.new.append(plan)
        if PHASES[plan.state] == "Proposed":
            found.proposed = found.proposed or name
        return
    key = f"{plan.ledger_id}/{plan.id}/reject"
    if key in world.seen.refused:
        return
    request = placement_pb2.RejectRequest(
        plan_id=plan.id, version=plan.version, reason=f"its PlacementPlan {name} was deleted"
    )
    found.calls.append(Call("Reject", request, key))


def _of(world: World, one: Object) -> tuple[Any, str]:
    """The controller's plan that an object is, or why it is none."""
    spec, seen = one["spec"], world.seen
    if spec["ledgerId"] != seen.ledger:
        return None, f"is of ledger {spec['ledgerId']}, and the controller's is {seen.ledger}"
    plan = seen.plans.get(spec["planId"])
    if plan is None:
        return None, f"is {spec['planId']}, which the controller does not have" * (
            spec["planId"] in seen.unknown
        )
    if (plan.digest, plan.epoch) != (spec["digest"], spec["epoch"]):
        return None, f"says another digest or epoch than {plan.id} has"
    if plan.pool != world.fleet.pool:
        return None, f"is {plan.id}, which is of pool {plan.pool}"
    return plan, ""


def _approve(
    world: World, one: Object, plan: Any, approval: Mapping[str, Any], found: Plans
) -> None:
    if plan.state != placement_pb2.PLAN_STATE_PROPOSED:
        return
    key = f"{one['metadata']['uid']}/approve/{plan.digest}"
    if key in world.seen.refused:
        return
    request = placement_pb2.ApproveRequest(
        plan_id=plan.id, version=plan.version, digest=approval.get("digest", ""),
        approver=approval.get("by", ""), idempotency_key=key,
        reason=f"{approval.get('by')} approved PlacementPlan {one['metadata']['name']}",
    )  # fmt: skip
    found.calls.append(Call("Approve", request, key))


def _status(world: World, one: Object, plan: Any, why: str) -> dict[str, Any]:
    before, meta = one.get("status") or {}, one["metadata"]
    if plan is None and before.get("phase") in ENDED:
        return dict(before)  # whatever it was of, it has ended
    phase = "Foreign" if plan is None else PHASES.get(plan.state, "Foreign")
    told = f"It {why}." if why else plan.reason
    refused = world.seen.refused.get(f"{meta['uid']}/approve/{one['spec']['digest']}")
    if phase == "Proposed" and refused:
        told = refused
    stalled = phase in ("Foreign", "Halted") or (phase == "Proposed" and bool(refused))
    status = {
        **before, "observedGeneration": meta.get("generation", 0), "phase": phase,
        "conditions": conditions.merged(
            before.get("conditions") or [], meta.get("generation", 0), world.now,
            Ready=(phase == "Applied", phase, told),
            Reconciling=(phase in ("Approved", "Applying"), phase, told),
            Stalled=(stalled, phase if stalled else "None", told if stalled else ""),
        ),
    }  # fmt: skip
    if plan is not None and phase in ("Applying", "Applied", "Halted"):
        status["acknowledgements"] = [_said(ack, plan) for ack in plan.acknowledgements]
    return status


def _said(ack: Any, plan: Any) -> dict[str, Any]:
    state = "Applied" if ack.digest == plan.digest else "Refused" if ack.refused else "Waiting"
    told = {
        "engine": ack.engine, "rank": ack.rank, "pod": ack.pod, "epoch": ack.epoch,
        "digest": ack.digest, "state": state,
    }  # fmt: skip
    return {**told, "reason": ack.refused} if state == "Refused" else told


def _prune(objects: Any, found: Plans) -> None:
    ended = [
        one for one in objects
        if found.statuses.get(one["metadata"]["name"], one.get("status") or {}).get("phase")
        in ENDED
    ]  # fmt: skip
    ended.sort(key=lambda one: (one["spec"]["epoch"], one["metadata"]["name"]), reverse=True)
    found.obsolete = ended[KEPT:]
