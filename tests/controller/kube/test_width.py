"""Pods first, then the engine; the engine first, then the pods."""

from typing import Any

import pytest

from controller.kube.wanted.world import Fleet
from tests.controller.kube.tiny_fleet import (
    call,
    condition,
    fleet,
    pod,
    pool,
    scaled,
    wanted,
    workload,
)

RAY = {"reference": {"kind": "RayCluster", "name": "chat", "workerGroup": "ranks"}}


def wide(ranks: int, desired: int = 0, **spec: Any) -> Fleet:
    """desired: that was acted upon"""
    status = {"observedGeneration": 1, "width": {"desired": desired}} if desired else {}
    return fleet(width={"ranks": ranks}, status=status, **spec)


def pods(count: int) -> list[Any]:
    return [pod(number) for number in range(count)]


def test_more_ranks_want_pods_first() -> None:
    found = wanted(wide(3, desired=2))
    assert found.calls == []
    assert found.patch is not None
    assert found.patch.body == [
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "add", "path": "/spec/replicas", "value": 3},
    ]
    assert found.status["width"]["desired"] == 3
    assert condition(found, "Reconciling")[:2] == ("True", "Scaling")


def test_before_pods_are_made_the_controller_says_whether_it_is_possible() -> None:
    asked = wanted(wide(3, desired=2), checked=frozenset())
    assert call(asked).request.dry_run
    assert asked.patch is None
    assert asked.status["width"]["desired"] == 2  # the wish is not acted upon yet
    key = "uid-chat/possible/1/3"
    refused = wanted(wide(3, desired=2), checked=frozenset(), refused={key: "engine-0 cannot"})
    assert refused.patch is None
    assert condition(refused, "Stalled") == ("True", "WidthNotLive", "3 ranks: engine-0 cannot")
    assert refused.status["liveWidth"]["reason"] == "engine-0 cannot"


def test_nor_is_it_asked_while_another_operation_runs() -> None:
    found = wanted(wide(3, desired=2), checked=frozenset(), busy="op-1 (apply) of code")
    assert found.calls == []
    assert found.patch is None
    told = condition(found, "Reconciling")
    assert told == ("False", "Waiting", "op-1 (apply) of code is at work: 3 ranks wait for its end")


def test_the_engine_is_asked_once_all_pods_are_ready() -> None:
    three = workload(3)
    waits = wanted(wide(3, desired=3), workload=three, pods=[*pods(2), pod(2, ready=False)])
    assert waits.calls == []
    assert condition(waits, "Reconciling")[2] == "2 of 3 pods are ready for 3 ranks"
    asked = call(wanted(wide(3, desired=3), workload=three, pods=pods(3)))
    assert (asked.method, asked.request.ranks) == ("ScaleTo", 3)
    assert [one.uid for one in asked.request.ready_pods] == ["uid-0", "uid-1", "uid-2"]
    assert asked.request.idempotency_key == "uid-chat/scale/1/3"


def test_an_operation_that_runs_is_waited_for() -> None:
    running = [scaled("RUNNING", progress="engine-0: transferring")]
    found = wanted(wide(3, desired=3), workload=workload(3), pods=pods(3), operations=running)
    assert found.calls == []
    assert found.patch is None


def test_between_two_widths_ranks_are_as_they_were_said_last() -> None:
    """Its workers do not agree while it switches, and requests are answered."""
    said = {"desired": 3, "allocated": 3, "available": 3, "engineActive": 3, "traffic": 3}
    running = [scaled("RUNNING", progress="engine-0: releasing")]
    for now, desired in (
        (fleet(status={"width": said}, width={"ranks": 2}), 2),
        (fleet(status={"width": said}), 3),
    ):
        found = wanted(now, pool=pool(0), workload=workload(3), pods=pods(3), operations=running)
        assert found.status["width"] == {**said, "desired": desired}


def test_fewer_ranks_ask_the_engine_first() -> None:
    found = wanted(wide(1, desired=2))
    assert call(found).method == "ScaleTo"
    assert found.patch is None


def test_then_the_pods_go_that_it_released() -> None:
    done = [scaled(released_pods=["uid-1"])]
    found = wanted(wide(1, desired=1), pool=pool(1), operations=done)
    assert found.patch is not None
    assert found.patch.body[-1]["value"] == 1
    assert found.patch.why == "StatefulSet chat: 2 -> 1 replicas, no engine needs chat-1"


def test_once_they_are_on_their_way_no_more_go() -> None:
    done = [scaled(released_pods=["uid-1"])]
    found = wanted(wide(1, desired=1), pool=pool(1), operations=done, workload=workload(1))
    assert found.patch is None


def test_a_statefulset_keeps_a_released_pod_that_is_not_its_last() -> None:
    done = [scaled(released_pods=["uid-0"])]
    found = wanted(wide(1, desired=1), pool=pool(1), operations=done)
    assert found.patch is None
    assert "no engine needs chat-0, and a StatefulSet" in condition(found, "Reconciling")[2]


def test_a_deployment_loses_pods_only_while_the_released_are_not_ready() -> None:
    deployment = {"reference": {"kind": "Deployment", "name": "chat"}}
    one = wide(1, desired=1, workload=deployment)
    done, of = [scaled(released_pods=["uid-1"])], workload(kind="Deployment")
    ready = wanted(one, pool=pool(1), operations=done, workload=of)
    assert ready.patch is None
    assert "a Deployment could remove another" in condition(ready, "Reconciling")[2]
    gone = [pod(0), pod(1, ready=False)]
    left = wanted(one, pool=pool(1), operations=done, workload=of, pods=gone)
    assert left.patch is not None
    assert left.patch.body[-1]["value"] == 1


def test_a_raycluster_is_told_which_pods_go() -> None:
    group = {"name": "ranks", "replicas": 2, "gpus": 1, "most": 4}
    other = {"name": "other", "replicas": 9, "gpus": 0, "most": 4}
    ray = workload(kind="RayCluster", autoscales=False, groups=[other, group])
    done = [scaled(released_pods=["uid-0"])]
    one = wide(1, desired=1, workload=RAY)
    found = wanted(one, pool=pool(1), operations=done, workload=ray)
    assert found.patch is not None
    assert found.patch.body[1:] == [
        {"op": "test", "path": "/spec/workerGroupSpecs/1/groupName", "value": "ranks"},
        {
            "op": "add", "path": "/spec/workerGroupSpecs/1/scaleStrategy",
            "value": {"workersToDelete": ["chat-0"]},
        },
        {"op": "add", "path": "/spec/workerGroupSpecs/1/replicas", "value": 1},
    ]  # fmt: skip


def test_a_raycluster_grows_no_further_than_its_group_may() -> None:
    group = {"name": "ranks", "replicas": 2, "gpus": 1, "most": 4}
    ray = workload(kind="RayCluster", autoscales=False, groups=[group])
    found = wanted(wide(5, desired=2, workload=RAY), workload=ray)
    assert found.patch is None
    assert condition(found, "Stalled") == (
        "True", "WidthNotLive",
        "5 ranks need 5 pods, and maxReplicas of worker group ranks is 4: raise it",
    )  # fmt: skip


def test_a_pod_with_eight_gpus_is_eight_ranks() -> None:
    found = wanted(
        wide(24, desired=16), pool=pool(16), workload=workload(2, gpus=8),
        pods=[pod(0, gpus=8), pod(1, gpus=8)],
    )  # fmt: skip
    assert found.patch is not None
    assert found.patch.body[-1]["value"] == 3


def test_each_of_two_engines_has_that_width() -> None:
    found = wanted(wide(3, desired=2), pool=pool(2, engines=2), workload=workload(4), pods=pods(4))
    assert found.patch is not None
    assert found.patch.body[-1]["value"] == 6


def test_a_persons_replicas_are_respected_and_told() -> None:
    """They took one of three away, before the engine had it; and made two of them seven."""
    fewer = wanted(wide(3, desired=3), workload=workload(2))
    assert fewer.patch is None
    assert condition(fewer, "Reconciling")[2] == (
        "replicas of StatefulSet chat are 2, and 3 ranks need 3: somebody's edit is respected: "
        "raise them, or change spec.width.ranks"
    )
    more = wanted(wide(2, desired=2), workload=workload(7), pods=pods(7))
    assert more.patch is None
    assert more.status["width"]["allocated"] == 7


def test_a_width_that_somebody_chose_since_is_respected_and_told() -> None:
    done = [scaled(idempotency_key="uid-chat/scale/1/3")]
    found = wanted(wide(3, desired=3), workload=workload(3), pods=pods(3), operations=done)
    assert found.calls == []
    assert "engines have 2 ranks since op-1 made them 3" in condition(found, "Reconciling")[2]


@pytest.mark.parametrize(("phase", "word"), [("ROLLED_BACK", "rolled back"), ("HALTED", "halted")])
def test_a_scaling_that_failed_is_not_tried_again_by_itself(phase: str, word: str) -> None:
    key = "uid-chat/scale/1/1"
    done = [scaled(phase, idempotency_key=key, reason="rank 1 died")]
    found = wanted(wide(1, desired=1), operations=done)
    assert found.calls == []
    told = f"op-1 {word}: rank 1 died: change spec.width.ranks to have it tried again"
    assert condition(found, "Stalled") == ("True", "OperationHalted", told)


def test_engines_that_cannot_change_while_they_serve_are_said_to_be_so() -> None:
    done = [scaled("REFUSED", idempotency_key="uid-chat/scale/1/1", reason="engine-0 cannot")]
    found = wanted(wide(1, desired=1), operations=done)
    assert condition(found, "Stalled")[1] == "WidthNotLive"
    assert not found.status["liveWidth"]["possible"]


def test_a_leader_worker_set_says_what_would_make_it_possible() -> None:
    reference = {"kind": "LeaderWorkerSet", "name": "chat"}
    of = workload(kind="LeaderWorkerSet")
    found = wanted(wide(4, workload={"reference": reference}), workload=of)
    assert found.calls == []
    assert found.patch is None
    assert condition(found, "Stalled")[:2] == ("True", "WidthNotLive")
    assert "serve it as a StatefulSet" in found.status["liveWidth"]["remedy"]


@pytest.mark.parametrize(
    ("reference", "of"),
    [
        ({"kind": "LeaderWorkerSet", "name": "chat"}, workload(kind="LeaderWorkerSet")),
        (RAY["reference"], workload(
            kind="RayCluster", autoscales=True,
            groups=[{"name": "ranks", "replicas": 2, "gpus": 0, "most": None}])),
    ],
    ids=["LeaderWorkerSet", "RayCluster that scales itself"],
)  # fmt: skip
def test_replicas_that_are_not_placers_to_change_stay_also_before_engines_come(
    reference: Any, of: Any
) -> None:
    found = wanted(wide(4, workload={"reference": reference}), workload=of, pool=None)
    assert found.patch is None


def test_a_selectors_pods_are_counted_and_not_made() -> None:
    labels = {"matchLabels": {"app": "chat"}}
    found = wanted(wide(3, workload={"selector": labels}), workload=None)
    assert found.patch is None
    assert "2 of 3 pods are ready" in condition(found, "Reconciling")[2]


def test_outside_of_its_budget_a_width_waits() -> None:
    """The tenth of January 1970 is a Saturday; the budget opens on Sundays."""
    budget = {"reasons": ["Scale"], "schedule": "0 0 * * SUN", "duration": "24h"}
    found = wanted(wide(3, desired=2, budgets=[budget]))
    assert found.patch is None
    assert found.calls == []
    told = condition(found, "Reconciling")
    assert told[2] == "no budget for Scale is open now: the width waits"
    assert found.again_s is not None
