"""One look at a fleet: what should be said of it and done for it. The same world gives the same."""

from typing import Any

from controller.kube.wanted import conditions, news, plans, policy, width
from controller.kube.wanted.conditions import Condition
from controller.kube.wanted.selectors import text_of
from controller.kube.wanted.world import Fleet, Wanted, World, rfc3339
from placer.errors import PlacerError
from placer.v1 import fleet_pb2

NOTHING: Condition = (False, "None", "")
STEP = 0.05  # by which the balancedness changes before it is told again


def reconcile(world: World) -> Wanted:
    fleet = world.fleet
    if fleet.is_leaving:
        return Wanted(fleet.status)
    if world.seen.away:
        return _away(world)
    if not fleet.has_own_pool:
        return _refused(world, _not_its_own(fleet))
    if world.first is not None:
        return _conflict(world)
    if fault := fleet.spec.get("fault"):
        return _refused(world, f"{fault}: apply the MoEFleet again")
    try:
        return _looked_after(world)
    except (PlacerError, KeyError, TypeError, ValueError, AttributeError) as error:
        return _refused(world, _sentence(error))


def _looked_after(world: World) -> Wanted:
    """Raises what a spec of no sense leads to: a server refuses most of it, not all."""
    wanted, limit = policy.policy_of(world)
    put = policy.put(world, wanted)
    if put is not None and put.key in world.seen.refused:
        return _refused(world, world.seen.refused[put.key])
    found, kept = width.width_of(world), plans.plans_of(world)
    status = {
        **_said(world), "width": found.states, "liveWidth": found.live,
        "plans": {
            key: name
            for key, name in (("applied", kept.applied), ("proposed", kept.proposed))
            if name
        },
    }  # fmt: skip
    operation = _operation(world)
    if operation:
        status["operation"] = operation
    status["conditions"] = _conditions(
        world, Ready=_ready(world), Reconciling=_reconciling(operation, found, limit.why),
        Stalled=_stalled(world, found, kept),
    )  # fmt: skip
    edges = [edge for edge in (limit.until, found.until) if edge is not None]
    return Wanted(
        status=status,
        calls=[*([put] if put is not None else []), *found.calls, *kept.calls],
        patch=found.patch, plans=kept.new, statuses=kept.statuses, obsolete=kept.obsolete,
        again_s=min(edges) - world.now if edges else None,
    )  # fmt: skip


def _away(world: World) -> Wanted:
    """All else stays as it was said last."""
    status, told = world.fleet.status, world.seen.away
    before = {
        name: (one["status"] == "True", one["reason"], one.get("message", ""))
        for name in ("Reconciling", "Stalled") if (one := conditions.of(status, name))
    }  # fmt: skip
    fill: dict[str, Condition] = {"Reconciling": (False, "Idle", ""), "Stalled": NOTHING}
    return Wanted({
        **status,
        "conditions": _conditions(world, Ready=(None, "ControllerAway", told), **(fill | before)),
    })  # fmt: skip


def _conflict(world: World) -> Wanted:
    fleet, first = world.fleet, world.first
    assert first is not None
    what = f"pool {fleet.pool}" if fleet.pool == first.pool else fleet.title
    told = (
        f"MoEFleet {first.name} claimed {what} before: delete one of the two, or give this one "
        "another workload and pool"
    )
    return _stands_still(world, "Conflict", told)


def _not_its_own(fleet: Fleet) -> str:
    return (
        f"spec.pool {fleet.pool} is none of namespace {fleet.namespace}: delete this MoEFleet, and "
        f"make one whose pool begins with {fleet.namespace}., or without one"
    )


def _refused(world: World, told: str) -> Wanted:
    return _stands_still(world, "PolicyRefused", told)


def _stands_still(world: World, reason: str, told: str) -> Wanted:
    meta = world.fleet.object["metadata"]
    status = {
        **world.fleet.status, "observedGeneration": meta.get("generation", 0),
        "pool": world.fleet.pool,
        "conditions": _conditions(
            world, Ready=(False, reason, told), Reconciling=(False, "Idle", ""),
            Stalled=(True, reason, told),
        ),
    }  # fmt: skip
    return Wanted(status)


def _conditions(world: World, **wanted: Condition) -> list[dict[str, Any]]:
    before = world.fleet.status.get("conditions") or []
    return conditions.merged(before, world.fleet.generation, world.now, **wanted)


def _said(world: World) -> dict[str, Any]:
    """What the controller says, and of what."""
    fleet, pool, before = world.fleet, world.seen.pool, world.fleet.status
    status: dict[str, Any] = {
        "observedGeneration": fleet.generation, "pool": fleet.pool, "ledger": world.seen.ledger,
        "engines": len(pool.engines) if pool is not None else 0,
    }  # fmt: skip
    if world.selector:
        status["selector"] = text_of(world.selector)
    if pool is None:
        return status
    if pool.balancedness:
        kept = before.get("balancedness")
        same = kept is not None and abs(float(kept) - pool.balancedness) < STEP
        status["balancedness"] = kept if same else f"{pool.balancedness:.2f}"
    if pool.outcome:
        # Its numbers change at each look: it is told again when it is another one.
        kept = before.get("decision") or {}
        was = kept.get("outcome", ""), kept.get("reason", "")
        same = was[0] == pool.outcome and news.about(*was) == news.about(pool.outcome, pool.reason)
        status["decision"] = kept if same else {
            "outcome": pool.outcome, "reason": pool.reason[:2000], "at": rfc3339(pool.decided_s),
        }  # fmt: skip
    return status


def _operation(world: World) -> dict[str, Any]:
    """The one that runs, or the first that waits."""
    running = [one for one in world.seen.operations if one.phase in width.OPEN]
    if not running:
        return {}
    one = min(running, key=lambda one: (one.queue, one.begun_s))
    phase = fleet_pb2.OperationPhase.Name(one.phase).removeprefix("OPERATION_PHASE_")
    return {
        "id": one.id, "kind": one.kind, "phase": phase.lower(), "queue": one.queue,
        "progress": one.progress.partition(",")[0],  # rounds and shares would be steady writes
    }  # fmt: skip


def _ready(world: World) -> Condition:
    fleet, pool = world.fleet, world.seen.pool
    if not world.pods:
        if fleet.reference is not None and not world.selector:
            return False, "NoPods", f"there is no {fleet.title} in {fleet.namespace}: make it"
        told = f"no pod matches {text_of(world.selector)}: start the engines, or correct"
        return False, "NoPods", f"{told} spec.workload"
    if (stray := _stray(world)) is not None:
        return stray
    if pool is None or not pool.engines:
        return (
            False,
            "Pending",
            (
                f"no worker registered for pool {fleet.pool} yet: do the pods have PLACER_AGENT, "
                f"and PLACER_POOL={fleet.pool}?"
            ),
        )
    if pool.model != fleet.spec["model"]:
        return (
            False,
            "PodsOfAnotherModel",
            (
                f"the workers serve {pool.model}, and spec.model is {fleet.spec['model']}: correct "
                "one of the two"
            ),
        )
    return True, "Serving", f"the controller looks after pool {fleet.pool}{_redundant(world)}"


def _stray(world: World) -> Condition | None:
    """That the workload's pods are ranks of another pool, or the ranks of this pool in others."""
    fleet, pool = world.fleet, world.seen.pool
    for pod in world.pods:
        name, other = pod["metadata"]["name"], world.pool_of(pod)
        if other is not None and other.model != fleet.spec["model"]:
            told = f"{name} serves {other.model} in pool {other.name}, and spec.model is"
            told = f"{told} {fleet.spec['model']}: correct spec.workload or spec.model"
            return False, "PodsOfAnotherModel", told
        if other is not None and (pool is None or not pool.engines):
            told = f"{name} registered for pool {other.name}: give the pods"
            return False, "Pending", f"{told} PLACER_POOL={fleet.pool}, or correct spec.workload"
    if not world.stray:
        return None
    told = f"ranks of pool {fleet.pool} run in other pods, such as {world.stray}"
    return False, "Pending", f"{told}: correct spec.workload, or the PLACER_POOL of those pods"


def _redundant(world: World) -> str:
    """That engines have another redundancy than the fleet should, if they have."""
    pool, wanted = world.seen.pool, world.fleet.spec.get("redundancy")
    if wanted is None or not pool.experts:
        return ""
    others = {one.slots - pool.experts for one in pool.engines if one.slots} - {wanted}
    if not others:
        return ""
    told = " and ".join(map(str, sorted(others)))
    return (
        f"; engines have {told} redundant slots a layer, and spec.redundancy is {wanted}: start "
        "them with that num_redundant_experts, or correct it"
    )


def _reconciling(operation: dict[str, Any], found: width.Width, closed: str) -> Condition:
    if operation and operation["phase"] == "waiting":
        place = f"number {operation['queue']} over all pools"
        return True, "Waiting", f"{operation['id']} ({operation['kind']}) waits, {place}"
    if operation:
        word = "Scaling" if operation["kind"] == "scale" else "Applying"
        return True, word, f"{operation['id']}: {operation['progress']}"
    if found.moves:
        return True, "Scaling", found.told or (found.patch.why if found.patch else "")
    if found.told:
        return False, "Waiting", found.told
    return False, "Idle", closed


def _stalled(world: World, found: width.Width, kept: plans.Plans) -> Condition:
    if found.stalled is not None:
        return True, *found.stalled
    halted = fleet_pb2.OPERATION_PHASE_HALTED
    newest = next(iter(world.seen.operations), None)
    if newest is not None and newest.phase == halted:
        return True, "OperationHalted", f"{newest.id} halted: {newest.reason}"  # and what to do
    if kept.foreign:
        return True, "ForeignPlan", kept.foreign
    return NOTHING


def _sentence(error: Exception) -> str:
    if isinstance(error, PlacerError):
        return str(error)
    return f"spec cannot be read ({type(error).__name__}: {error}): apply it again"
