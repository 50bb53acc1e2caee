"""Whose a change is, and who claimed what first."""

from typing import Any

import pytest

from controller.kube.caches import Caches
from controller.kube.cluster.informer import Name
from controller.kube.objects import FLEETS, PODS, STATEFUL_SETS, TRIMS, Kind
from controller.kube.wanted.selectors import matches, text_of
from controller.kube.wanted.world import Fleet
from placer.virtual_clock import VirtualClock
from tests.controller.kube.tiny_api import TinyApi


class World:
    """Caches that hear of objects one by one."""

    def __init__(self) -> None:
        self.wanted: list[Name] = []
        api: Any = TinyApi()
        self.caches = Caches(api, ["moe"], VirtualClock(), self.wanted.append)

    def hear(self, kind: Kind, name: str, spec: Any, status: Any = None, **meta: Any) -> Any:
        said = {"name": name, "namespace": "moe", "uid": f"uid-{name}", "resourceVersion": "1"}
        found = {"metadata": said | meta, "spec": spec, "status": status or {}}
        for one in self.caches._of[kind]:
            one._take("ADDED", found)
        return TRIMS[kind](found)

    def forget(self, kind: Kind, name: str) -> None:
        gone = {"metadata": {"name": name, "namespace": "moe", "resourceVersion": "2"}}
        for one in self.caches._of[kind]:
            one._take("DELETED", gone)

    def fleet(self, name: str, workload: Any, made: str = "2026", **spec: Any) -> Fleet:
        said = {"workload": workload, "model": "m", **spec}
        return Fleet(self.hear(FLEETS, name, said, creationTimestamp=made))

    def asked(self) -> set[str]:
        """Fleets that were wanted since the last time."""
        found = {name for _, name in self.wanted}
        self.wanted.clear()
        return found

    def first(self, fleet: Fleet, pods: Any = ()) -> str:
        found = self.caches.first(fleet, pods)
        return found.name if found is not None else ""


def of(name: str) -> Any:
    return {"reference": {"kind": "StatefulSet", "name": name}}


def labelled(**labels: str) -> Any:
    return {"selector": {"matchLabels": labels}}


def test_a_workload_and_its_pods_are_its_fleets() -> None:
    world = World()
    world.fleet("chat", of("chat"))
    world.fleet("code", of("code"))
    world.asked()
    selector = {"matchLabels": {"app": "chat"}}
    world.hear(STATEFUL_SETS, "chat", {"replicas": 2, "selector": selector})
    assert world.asked() == {"chat"}
    world.hear(PODS, "chat-0", {}, labels={"app": "chat"})
    world.hear(PODS, "other-0", {}, labels={"app": "other"})
    assert world.asked() == {"chat"}


def test_pods_that_have_ended_are_gone_though_they_are_there() -> None:
    world = World()
    fleet, selector = world.fleet("chat", of("chat")), {"matchLabels": {"app": "chat"}}
    for number, phase in enumerate(("Running", "Failed", "Succeeded", "Pending")):
        world.hear(PODS, f"chat-{number}", {}, {"phase": phase}, labels={"app": "chat"})
    found = world.caches.pods(fleet, selector)
    assert [one["metadata"]["name"] for one in found] == ["chat-0", "chat-3"]


def test_nobody_was_first_with_a_pool_of_another_namespace_however_old() -> None:
    world = World()
    fleets = [
        Fleet(world.hear(
            FLEETS, "chat", {"workload": of("chat"), "model": "m", "pool": "moe.chat"},
            namespace=namespace, uid=namespace, creationTimestamp=made,
        ))
        for namespace, made in (("moe", "2026"), ("evil", "2025"))
    ]  # fmt: skip
    assert [world.caches.first(one, []) for one in fleets] == [None, None]


def test_the_older_fleet_of_a_workload_was_first_and_then_the_name_decides() -> None:
    world = World()
    late = world.fleet("a", of("chat"), made="2026-02")
    early = world.fleet("b", of("chat"), made="2026-01")
    same = world.fleet("c", of("chat"), made="2026-01")
    assert [world.first(one) for one in (late, early, same)] == ["b", "", "b"]


def test_when_the_first_changes_the_second_is_asked_again() -> None:
    world = World()
    world.fleet("first", of("chat"))
    world.fleet("second", of("chat"))
    world.fleet("third", of("code"))
    world.asked()
    world.fleet("first", of("other"))
    assert {"first", "second"} <= world.asked()


@pytest.mark.parametrize("workload", [labelled(app="other"), None])
def test_when_a_selector_goes_or_changes_whoever_it_clashed_with_is_asked_again(
    workload: Any,
) -> None:
    world = World()
    world.fleet("first", labelled(tier="gpu"), made="2025")
    second = world.fleet("second", of("chat"))
    pod = world.hear(PODS, "chat-0", {}, labels={"app": "chat", "tier": "gpu"})
    assert world.first(second, [pod]) == "first"
    world.asked()
    if workload is None:
        world.forget(FLEETS, "first")
    else:
        world.fleet("first", workload, made="2025")
    assert "second" in world.asked()
    assert world.first(second, [pod]) == ""


@pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])
def test_of_two_workloads_whose_selectors_overlap_each_has_the_pods_that_it_made(
    kind: str,
) -> None:
    world, selector = World(), {"matchLabels": {"app": "vllm"}}
    makers = {"StatefulSet": ("StatefulSet", ""), "Deployment": ("ReplicaSet", "-5d9c7")}
    fleets = []
    for name in ("chat", "code"):
        reference = {"reference": {"kind": kind, "name": name}}
        fleets.append(world.fleet(name, reference))
        of, behind = makers[kind]
        owner = {"kind": of, "name": name + behind, "uid": f"uid-{name}", "controller": True}
        said = {"labels": {"app": "vllm"}, "ownerReferences": [owner]}
        world.hear(PODS, f"{name}-0", {}, **said)
    for fleet in fleets:
        [pod] = world.caches.pods(fleet, selector)
        assert pod["metadata"]["name"] == f"{fleet.name}-0"


def test_two_fleets_of_one_pool_clash() -> None:
    world = World()
    world.fleet("first", of("chat"), made="2025", pool="shared")
    assert world.first(world.fleet("second", of("code"), pool="shared")) == "first"


def test_worker_groups_of_one_raycluster_are_two_workloads() -> None:
    world = World()

    def group(name: str) -> Any:
        return {"reference": {"kind": "RayCluster", "name": "ray", "workerGroup": name}}

    world.fleet("first", group("a"), made="2025")
    assert world.first(world.fleet("second", group("b"))) == ""
    assert world.first(world.fleet("third", group("a"))) == "first"


def test_a_selector_clashes_by_the_pods_that_it_matches() -> None:
    world = World()
    world.fleet("first", labelled(app="chat"), made="2025")
    mine = world.hear(PODS, "chat-0", {}, labels={"app": "chat", "tier": "gpu"})
    other = world.hear(PODS, "code-0", {}, labels={"app": "code", "tier": "gpu"})
    second = world.fleet("second", labelled(tier="gpu"))
    assert world.first(second, [mine, other]) == "first"
    assert world.first(second, [other]) == ""


@pytest.mark.parametrize(
    ("condition", "holds", "text"),
    [
        ({"operator": "In", "values": ["chat", "code"]}, True, "app in (chat,code)"),
        ({"operator": "NotIn", "values": ["chat"]}, False, "app notin (chat)"),
        ({"operator": "Exists"}, True, "app"),
        ({"operator": "DoesNotExist"}, False, "!app"),
    ],
)
def test_conditions_on_labels(condition: Any, holds: bool, text: str) -> None:
    selector = {"matchExpressions": [{"key": "app", **condition}]}
    assert matches(selector, {"app": "chat"}) is holds
    assert text_of(selector) == text


def test_no_condition_is_nobodys() -> None:
    assert not matches({}, {"app": "chat"})
    assert not matches({"matchLabels": {}}, {"app": "chat"})
