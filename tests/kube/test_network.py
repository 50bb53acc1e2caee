"""Who reaches whom by the chart's network policies, as a cluster that enforces them decides."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tests.kube.rendered import Objects

OURS = "moe"
Template = Callable[..., Objects]


class Pod(NamedTuple):
    namespace: str
    labels: dict[str, str]


def ours(component: str) -> Pod:
    of = {"name": "placer", "instance": "placer", "component": component}
    return Pod(OURS, {f"app.kubernetes.io/{key}": value for key, value in of.items()})


ENGINE, STRANGER = Pod(OURS, {"app": "chat"}), Pod("elsewhere", {"app": "chat"})
MONITOR, RAY_NODE = Pod("monitoring", {}), Pod("ray", {"ray.io/is-ray-node": "yes"})
API_SERVER = Pod("", {})  # no pod at all
DNS = Pod("kube-system", {"k8s-app": "kube-dns"})
ROUTER = {"name": "chat", "kind": "front", "pool": "p", "keysSecret": "k"}


def chosen(selector: Any, labels: dict[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    expressions = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in expressions)
    return all(labels.get(one["key"]) in one["values"] for one in expressions)


def is_peer(peer: Any, pod: Pod) -> bool:
    """The API's words: without a namespaceSelector, pods of the policy's own namespace."""
    if not pod.namespace:
        return False
    where = {"kubernetes.io/metadata.name": pod.namespace}
    in_namespace = (
        chosen(peer["namespaceSelector"], where)
        if "namespaceSelector" in peer
        else pod.namespace == OURS
    )
    return in_namespace and chosen(peer.get("podSelector", {}), pod.labels)


def passes(objects: Objects, direction: str, of: Pod, other: Pod, port: int) -> bool:
    """Whether one pod's policies let that through; a pod that no policy chooses is open."""
    policies = [
        one["spec"]
        for one in objects
        if one["kind"] == "NetworkPolicy"
        and of.namespace == one["metadata"]["namespace"]
        and chosen(one["spec"]["podSelector"], of.labels)
    ]
    if not policies:
        return True
    side = "from" if direction == "ingress" else "to"
    return any(
        (side not in rule or any(is_peer(peer, other) for peer in rule[side]))
        and ("ports" not in rule or port in {one["port"] for one in rule["ports"]})
        for policy in policies
        for rule in policy[direction]
    )


def reaches(objects: Objects, one: Pod, other: Pod, port: int) -> bool:
    return passes(objects, "egress", one, other, port) and passes(
        objects, "ingress", other, one, port
    )


@pytest.fixture(scope="module")
def policies(template: Template) -> Objects:
    return template({"routers": [ROUTER, ROUTER | {"name": "picks", "kind": "picker"}]})


CONTROLLER, OPERATOR, FRONT, PICKER = map(ours, ("controller", "operator", "chat", "picks"))


@pytest.mark.parametrize(
    ("one", "other", "port", "expected"),
    [
        (ENGINE, CONTROLLER, 7077, True),
        (STRANGER, CONTROLLER, 7077, False),
        (OPERATOR, CONTROLLER, 7077, True),
        (FRONT, CONTROLLER, 7077, True),
        (PICKER, CONTROLLER, 7077, True),
        (ours("test"), CONTROLLER, 7077, True),
        (MONITOR, CONTROLLER, 9090, True),
        (MONITOR, CONTROLLER, 7077, False),
        (ENGINE, CONTROLLER, 9090, False),
        (MONITOR, OPERATOR, 9091, True),
        (ENGINE, OPERATOR, 9091, False),
        (CONTROLLER, ENGINE, 8000, True),  # where it asks for another width
        (CONTROLLER, STRANGER, 8000, False),
        (FRONT, ENGINE, 8000, True),
        (FRONT, STRANGER, 8000, False),
        (STRANGER, FRONT, 8080, True),  # a client
        (STRANGER, FRONT, 22, False),
        (MONITOR, PICKER, 9092, True),
        (STRANGER, PICKER, 9092, False),
        (OPERATOR, API_SERVER, 443, True),
        (OPERATOR, API_SERVER, 6443, True),
        (CONTROLLER, API_SERVER, 443, False),
        (FRONT, API_SERVER, 443, False),
        (OPERATOR, DNS, 53, True),
        (CONTROLLER, DNS, 53, True),
        (CONTROLLER, RAY_NODE, 6379, False),
    ],
)
def test_who_reaches_whom(
    policies: Objects, one: Pod, other: Pod, port: int, expected: bool
) -> None:
    assert reaches(policies, one, other, port) == expected


def test_fleets_elsewhere_reach_the_controller_if_it_looks_after_them(template: Template) -> None:
    assert reaches(template({"namespaces": ["elsewhere"]}), STRANGER, CONTROLLER, 7077)
    assert reaches(template({"clusterWide": True}), STRANGER, CONTROLLER, 7077)


def test_the_page_is_for_the_own_namespace_and_for_nobody_where_there_is_none(
    template: Template, policies: Objects
) -> None:
    objects = template({"controller": {"page": {"enabled": True}}})
    assert reaches(objects, ENGINE, CONTROLLER, 7078)
    assert not reaches(objects, STRANGER, CONTROLLER, 7078)
    assert not reaches(policies, ENGINE, CONTROLLER, 7078)


def test_a_controller_in_ray_and_its_nodes_reach_each_other(template: Template) -> None:
    objects = template({"controller": {"ray": {"address": "ray-head-svc.ray:6379"}}})
    for port in (6379, 10002):
        assert reaches(objects, CONTROLLER, RAY_NODE, port)
        assert reaches(objects, RAY_NODE, CONTROLLER, port)
