"""What is said of a fleet."""

import json
from dataclasses import replace
from typing import Any

import pytest

from controller.kube import objects
from controller.kube.wanted.reconcile import reconcile
from controller.kube.wanted.world import Fleet
from placer.v1 import fleet_pb2
from tests.controller.kube.tiny_fleet import (
    MODEL,
    NOW,
    condition,
    fleet,
    pod,
    pool,
    put,
    scaled,
    wanted,
    workload,
    world,
)


def test_first_the_controller_is_told_what_is_wanted_and_what_there_is() -> None:
    calls = {call.method: call.request for call in reconcile(world()).calls}
    assert calls.keys() == {"PutPolicy", "ReportCapacity"}
    policy = calls["PutPolicy"]
    assert (policy.pool, policy.version) == ("moe.chat", 0)
    assert json.loads(policy.policy) == {"mode": "advisory", "topology": "h100"}
    ready = [one.uid for one in calls["ReportCapacity"].ready_pods]
    assert ready == ["uid-0", "uid-1"]


@pytest.mark.parametrize(
    ("scheduling", "expected"),
    [({"enabled": True, "controlPercent": 20}, 0.2), ({"enabled": True}, None),
     ({"enabled": False, "controlPercent": 20}, None)],
)  # fmt: skip
def test_the_control_groups_share_is_for_fronts_where_there_are_tables(
    scheduling: Any, expected: float | None
) -> None:
    of = world(fleet(preScheduling=scheduling))
    [policy] = [one.request.policy for one in reconcile(of).calls if one.method == "PutPolicy"]
    assert json.loads(policy).get("control") == expected


@pytest.mark.parametrize(
    ("redundancy", "slots", "told"),
    [
        (4, 20, ""),
        (None, 20, ""),
        (0, 20, "; engines have 4 redundant slots a layer, and spec.redundancy is 0: start them "
            "with that num_redundant_experts, or correct it"),
        (4, 16, "; engines have 0 redundant slots a layer, and spec.redundancy is 4: start them "
            "with that num_redundant_experts, or correct it"),
    ],
)  # fmt: skip
def test_engines_with_another_redundancy_are_told(
    redundancy: int | None, slots: int, told: str
) -> None:
    of = fleet() if redundancy is None else fleet(redundancy=redundancy)
    seen = pool(experts=16)
    seen.engines[0].slots = slots
    status, reason, message = condition(wanted(of, pool=seen))
    assert (status, reason) == ("True", "Serving")
    assert message == f"the controller looks after pool moe.chat{told}"


def test_then_nothing_is_wanted_any_more() -> None:
    found = wanted()
    assert not any([found.calls, found.patch, found.plans, found.statuses, found.obsolete])
    assert condition(found)[:2] == ("True", "Serving")
    assert condition(found, "Reconciling")[:2] == ("False", "Idle")
    assert condition(found, "Stalled")[:2] == ("False", "None")


def test_the_same_world_says_the_same_so_that_nothing_is_written() -> None:
    before = put(world())
    status = reconcile(before).status
    again = replace(before, fleet=fleet(status=status), now=NOW + 1000)
    assert reconcile(again).status == status


def test_a_change_of_the_spec_is_put_on_top_of_the_version_that_is_known() -> None:
    before = put(world())
    changed = replace(before, fleet=fleet(mode="automatic"))
    [call] = reconcile(changed).calls
    assert (call.method, call.request.version) == ("PutPolicy", 1)


def test_a_policy_that_is_refused_stops_all_else_and_says_why() -> None:
    [call] = [call for call in reconcile(world()).calls if call.method == "PutPolicy"]
    found = reconcile(world(refused={call.key: "horizon_s: too long"}))
    assert condition(found) == ("False", "PolicyRefused", "horizon_s: too long")
    assert condition(found, "Stalled")[1] == "PolicyRefused"
    assert not found.calls


OTHER = fleet_pb2.Pool(model="Qwen3", engines=[fleet_pb2.Engine()])


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("NoPods", {"pods": []}),
        ("NoPods", {"pods": [], "workload": None, "selector": {}}),
        ("Pending", {"pool": None}),
        ("Pending", {"pool": pool(engines=0)}),
        (
            "PodsOfAnotherModel",
            {"pool": fleet_pb2.Pool(model="Qwen3", engines=[fleet_pb2.Engine()])},
        ),
    ],
)
def test_why_a_fleet_is_not_ready(reason: str, changes: dict[str, Any]) -> None:
    assert condition(wanted(**changes))[:2] == ("False", reason)


def a_pool_in(name: str, model: str, *pods: str) -> Any:
    """A pool with a rank in each of these pods."""
    found = fleet_pb2.Pool(name=name, model=model)
    rank_pods = [
        fleet_pb2.RankPod(rank=at, pod_uid=uid, pod_name=uid) for at, uid in enumerate(pods)
    ]
    found.engines.add(name="engine-0", ranks=len(pods), rank_pods=rank_pods)
    return found


MINE, OTHERS = ("uid-0", "uid-1"), ("uid-7", "uid-8")
A_FLEET, ANOTHER, SAME = (
    a_pool_in("moe.chat", MODEL, *OTHERS),
    a_pool_in("moe.code", "Qwen3", *MINE),
    a_pool_in("moe.talk", MODEL, *MINE),
)  # fmt: skip


@pytest.mark.parametrize(
    ("mine", "other", "reason", "told"),
    [
        (None, ANOTHER, "PodsOfAnotherModel",
         "chat-0 serves Qwen3 in pool moe.code, and spec.model is DeepSeek-V3: correct "
         "spec.workload or spec.model"),
        (A_FLEET, ANOTHER, "PodsOfAnotherModel", "chat-0 serves Qwen3 in pool moe.code"),
        (None, SAME, "Pending", "chat-0 registered for pool moe.talk: give the pods PLACER_POOL="),
        (A_FLEET, None, "Pending", "ranks of pool moe.chat run in other pods, such as uid-7: "),
        (a_pool_in("moe.chat", MODEL, *MINE), None, "Serving", ""),
        (a_pool_in("moe.chat", MODEL, "uid-0", "uid-7"), None, "Serving", ""),  # one is made anew
    ],
)  # fmt: skip
def test_a_workload_whose_pods_are_other_engines_is_told(
    mine: Any, other: Any, reason: str, told: str
) -> None:
    pools = [one for one in (mine, other) if one is not None]
    pool_of_pod = {
        pod.pod_uid: one for one in pools for engine in one.engines for pod in engine.rank_pods
    }
    found = wanted(pool=mine, pool_of_pod=pool_of_pod)
    assert condition(found)[1] == reason
    assert told in condition(found)[2]


def test_pods_of_other_engines_are_no_room_for_these() -> None:
    wish = fleet(width={"ranks": 3})
    pods = [pod(at) for at in range(3)]
    changes: Any = {"pods": pods, "workload": workload(3)}
    own, other = a_pool_in("moe.chat", MODEL, *MINE), a_pool_in("moe.code", "Qwen3", "uid-2")
    found = wanted(wish, pool=own, **changes)
    assert [one.method for one in found.calls] == ["ScaleTo"]
    found = wanted(wish, pool=own, pool_of_pod={"uid-2": other}, **changes)
    assert found.calls == []
    found = wanted(wish, pool=A_FLEET, workload=workload(2))
    assert (found.calls, found.patch) == ([], None)


def test_a_workload_that_is_not_there_is_named() -> None:
    found = wanted(pods=[], workload=None, selector={})
    assert condition(found)[2] == "there is no StatefulSet chat in moe: make it"


@pytest.mark.parametrize("name", ["code.chat", "moe-2.chat", "chat", "moe"])
def test_a_pool_of_another_namespace_is_not_its_to_have_whoever_was_first(name: str) -> None:
    found = reconcile(world(fleet(pool=name)))
    told = condition(found, "Stalled")
    assert told[:2] == ("True", "PolicyRefused")
    assert told[2].startswith(f"spec.pool {name} is none of namespace moe: delete this MoEFleet")
    assert not found.calls
    assert not found.plans


def test_a_fleet_whose_workload_another_claimed_before_does_nothing() -> None:
    found = reconcile(world(first=fleet("first", made="2025-01-01")))
    assert condition(found) == (
        "False", "Conflict",
        "MoEFleet first claimed StatefulSet chat before: delete one of the two, or give this one "
        "another workload and pool",
    )  # fmt: skip
    assert not found.calls


def test_while_the_controller_is_away_all_else_stays_as_it_was_said() -> None:
    before = wanted()
    found = reconcile(world(fleet(status=before.status), away="nobody answers"))
    assert condition(found) == ("Unknown", "ControllerAway", "nobody answers")
    assert not found.calls
    assert {**found.status, "conditions": 0} == {**before.status, "conditions": 0}


def test_a_fleet_that_is_being_deleted_is_left_alone() -> None:
    going = fleet()
    going.object["metadata"]["deletionTimestamp"] = "2026-01-02"
    assert reconcile(world(going)).calls == ()


def test_numbers_that_change_at_each_look_are_not_told_again() -> None:
    first = wanted(pool=pool(outcome="hold", reason="10 tokens", balancedness=0.61, decided_s=1.0))
    assert first.status["balancedness"] == "0.61"
    later = pool(outcome="hold", reason="11 tokens", balancedness=0.64, decided_s=31.0)
    assert wanted(fleet(status=first.status), pool=later).status == first.status


@pytest.mark.parametrize(
    ("outcome", "reason", "at"),
    [("wait", "it would pay", "1970-01-01T00:00:31Z"), ("hold", "-", "1970-01-01T00:00:01Z")],
)
def test_another_decision_is_told(outcome: str, reason: str, at: str) -> None:
    first = wanted(pool=pool(outcome="hold", reason="10 tokens", decided_s=1.0))
    later = pool(outcome=outcome, reason=reason, decided_s=31.0)
    assert wanted(fleet(status=first.status), pool=later).status["decision"]["at"] == at


def test_a_plan_that_waits_is_one_decision_until_it_waits_for_something_else() -> None:
    first = wanted(pool=pool(outcome="propose", reason="plan-1: 20% less: advisory", decided_s=1.0))
    kept = fleet(status=first.status)
    for reason, is_told in (
        ("plan-1 waits for approval: 20% less", False),
        ("plan-1 waits for its turn: ann approved it", True),
        ("plan-2: 30% less: advisory", True),
    ):
        later = pool(outcome="propose", reason=reason, decided_s=31.0)
        assert (wanted(kept, pool=later).status != first.status) == is_told


def test_progress_is_told_in_words_that_stand() -> None:
    running = scaled("RUNNING", kind="apply", progress="engine-1: copying, round 2 of 5")
    found = wanted(operations=[running])
    assert found.status["operation"]["progress"] == "engine-1: copying"
    assert condition(found, "Reconciling")[:2] == ("True", "Applying")


def test_who_waits_for_a_turn_is_told_the_place_over_all_pools() -> None:
    found = wanted(operations=[scaled("WAITING", queue=3)])
    told = condition(found, "Reconciling")
    assert told == ("True", "Waiting", "op-1 (scale) waits, number 3 over all pools")


def test_a_halted_operation_needs_a_person() -> None:
    found = wanted(operations=[scaled("HALTED", kind="apply", reason="engine-1 is gone")])
    assert condition(found, "Stalled") == (
        "True", "OperationHalted",
        "op-1 halted: engine-1 is gone",
    )  # fmt: skip


def test_a_spec_of_no_sense_is_told_and_is_no_fault() -> None:
    found = reconcile(world(fleet(objective="much")))
    assert condition(found)[1] == "PolicyRefused"
    assert condition(found)[2].startswith("spec cannot be read (AttributeError")


@pytest.mark.parametrize(
    "spec",
    [None, "much", {}, {"workload": "chat"}, {"workload": {"reference": {"kind": "Job"}}}],
)
def test_a_fleet_without_a_workload_is_kept_as_one_and_told(spec: object) -> None:
    kept = objects.fleet({"metadata": fleet().object["metadata"], "spec": spec})
    found = reconcile(world(Fleet(kept), workload=None, selector={}, pods=[]))
    assert condition(found)[1:] == (
        "PolicyRefused", "spec.workload names no workload: apply the MoEFleet again",
    )  # fmt: skip


def test_the_topology_is_what_the_pods_nodes_say() -> None:
    labelled = fleet(topology={"fromNodeLabels": True})
    products = {"node-1": "NVIDIA-H200-141GB"}
    [call] = [
        call for call in reconcile(world(labelled, products=products)).calls
        if call.method == "PutPolicy"
    ]  # fmt: skip
    assert json.loads(call.request.policy)["topology"] == "h200"


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("NVIDIA-H200", "NVIDIA-H100"),
        ("NVIDIA-H100", "NVIDIA-B300"),  # of which there is no preset
        ("NVIDIA-GH200-480GB", "NVIDIA-GH200-480GB"),
        ("NVIDIA-RTX-A1000", "NVIDIA-RTX-A1000"),
    ],
)
def test_nodes_that_say_two_things_or_what_no_preset_is_are_told(one: str, two: str) -> None:
    labelled = fleet(topology={"fromNodeLabels": True})
    pods = [pod(0), pod(1, node="node-2")]
    found = reconcile(world(labelled, pods=pods, products={"node-1": one, "node-2": two}))
    said = ", ".join(sorted({one, two}))
    assert f"say {said}, which is no one preset" in condition(found)[2]


def test_a_raycluster_that_scales_itself_cannot_be_scaled_live() -> None:
    reference = {"kind": "RayCluster", "name": "chat", "workerGroup": "ranks"}
    ray = workload(kind="RayCluster", autoscales=True, groups=[])
    found = wanted(fleet(workload={"reference": reference}), workload=ray)
    assert found.status["liveWidth"] == {
        "possible": False,
        "reason": "the RayCluster's own autoscaler changes the group's replicas",
        "remedy": "set spec.enableInTreeAutoscaling of the RayCluster to false",
    }
