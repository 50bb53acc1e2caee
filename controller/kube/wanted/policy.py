"""A fleet's spec as a pool's policy, in the words of the controller's settings."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from controller.kube.wanted.budgets import Allowed, allowed
from controller.kube.wanted.world import Call, Fleet, World
from placer.errors import PlacerError
from placer.v1 import policy_pb2

# What NVIDIA's feature discovery calls GPUs, by a word of the label's value: a GH200 is no H200.
PRODUCTS = (
    ("GB200", "gb200-nvl72"), ("H200", "h200"), ("H100", "h100"), ("A100", "a100"),
    ("L40S", "pcie-l40s"), ("Ascend910B[1-4]?", "ascend-910b"),
)  # fmt: skip
SAMPLED = 1000  # requests a phase, for tables: as docs/controller.md has it
KINDS = ("Rebalance", "Repair")


class SpecError(PlacerError):
    """A spec that no policy can be made of."""


def policy_of(world: World) -> tuple[dict[str, Any], Allowed]:
    """The policy, and what the budgets let changes do that are no changes of width. Raises
    PlacerError."""
    spec = world.fleet.spec
    objective = spec.get("objective") or {}
    wanted = {
        "mode": spec.get("mode", "advisory"),
        **_topology(world),
        "optimizer": objective.get("optimizer"),
        "dispatch": objective.get("dispatch"),
        "phase": objective.get("phase"),
        "horizon_s": objective.get("horizonSeconds"),
        "max_moved": objective.get("maxMoved"),
        "survive_node": objective.get("surviveNode"),
        "guard": spec.get("guard"),
        "overlap": spec.get("overlap"),
    }
    limits = [allowed(spec.get("budgets") or [], kind, world.now) for kind in KINDS]
    # The controller's policy does not tell the two apart: the stricter counts.
    strictest = min(limits, key=_rate)
    edges = [one.until for one in limits if one.until is not None]
    limit = Allowed(strictest.bytes_per_minute, strictest.why, min(edges, default=None))
    wanted["bytes_per_minute"] = limit.bytes_per_minute
    wanted["autoscale"] = _autoscale(spec)
    scheduling = spec.get("preScheduling") or {}
    if scheduling.get("enabled"):
        wanted["traces"] = {"requests": SAMPLED, "token_ids": True}
        if "controlPercent" in scheduling:
            wanted["control"] = scheduling["controlPercent"] / 100
    return {key: value for key, value in wanted.items() if value is not None}, limit


def put(world: World, wanted: Mapping[str, Any]) -> Call | None:
    """What makes it the pool's policy; None if it is."""
    text = json.dumps(wanted, sort_keys=True)
    said = reason(world.fleet, text)
    kept = world.seen.policy
    if kept is not None and kept.policy and kept.reason == said:
        return None
    version = kept.version if kept is not None else 0
    key = f"{world.fleet.uid}/policy/{version}/{_digest(text)}"
    request = policy_pb2.PutPolicyRequest(
        pool=world.fleet.pool, policy=text, version=version, reason=said, idempotency_key=key
    )
    return Call("PutPolicy", request, key)


def reason(fleet: Fleet, text: str) -> str:
    """It names the fleet and the policy: whoever reads it knows whose it is, and whether it is
    what was asked for, however the controller writes it down."""
    return f"{owner(fleet.namespace, fleet.name)}, spec {_digest(text)}"


def owner(namespace: str, name: str) -> str:
    return f"MoEFleet {namespace}/{name}"


def owner_of(said: str) -> tuple[str, str] | None:
    """Whose policy it is, by its reason; None if no fleet's."""
    words = said.partition(",")[0].split()
    if len(words) != 2 or words[0] != "MoEFleet" or words[1].count("/") != 1:
        return None
    namespace, _, name = words[1].partition("/")
    return namespace, name


def _topology(world: World) -> dict[str, Any]:
    given = world.fleet.spec.get("topology") or {}
    if not given.get("fromNodeLabels"):
        return {"topology": given.get("preset"), "nodes": given.get("nodes")}
    products = {world.products.get(pod["node"], "") for pod in world.pods if pod["node"]} - {""}
    if not products:
        return {}  # until a pod is on a node that says what it is
    presets = set(map(_preset, products))
    if len(presets) != 1 or "" in presets:
        raise SpecError(
            f"topology.fromNodeLabels: the nodes' nvidia.com/gpu.product say "
            f"{', '.join(sorted(products))}, which is no one preset: give topology.preset"
        )
    nodes = [
        len({pod.node for pod in engine.rank_pods if pod.node})
        for engine in (world.seen.pool.engines if world.seen.pool else ())
    ]
    return {"topology": presets.pop(), "nodes": max(nodes, default=0) or None}


def _preset(product: str) -> str:
    """Empty if there is none of it."""
    known = (preset for word, preset in PRODUCTS if re.search(rf"\b{word}\b", product))
    return next(known, "")


def _autoscale(spec: Mapping[str, Any]) -> dict[str, Any] | None:
    slo, width = spec.get("slo"), spec.get("width") or {}
    if not slo or width.get("ranks"):
        return None
    least = width.get("minRanks", 1)
    found: dict[str, Any] = {"ranks": [least, max(width.get("maxRanks", 16), least)]}
    for key, name in (("ttft_s", "ttftMilliseconds"), ("tpot_s", "tpotMilliseconds")):
        if name in slo:
            found[key] = slo[name] / 1000
    return {**found, "attainment": slo.get("attainment", 0.9)}


def _rate(limit: Allowed) -> float:
    return float("inf") if limit.bytes_per_minute is None else limit.bytes_per_minute


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
