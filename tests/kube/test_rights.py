"""What the chart's roles may do, as the server answers; each right of the operator by its name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.cluster import Cluster
from tests.kube.conftest import CHART
from tests.kube.rendered import Objects, names, one

HERE = "placer-system"
RULES = yaml.safe_load((CHART / "files/operator-rules.yaml").read_text())

# What an operator might want, and has no business with.
NEVER = [
    "get secrets", "list secrets", "get configmaps", "create pods", "create pods/exec",
    "delete pods", "patch nodes", "delete events", "create serviceaccounts/token",
    "get moefleets.placer.dev", "create moefleets.placer.dev", "update moefleets.placer.dev",
    "patch moefleets.placer.dev", "delete moefleets.placer.dev", "patch placementplans.placer.dev",
    "update placementplans.placer.dev", "approve placementplans.placer.dev",
    "create deployments.apps", "update statefulsets.apps", "delete statefulsets.apps",
    "patch daemonsets.apps", "create roles.rbac.authorization.k8s.io",
    "update leases.coordination.k8s.io another", "delete leases.coordination.k8s.io",
]  # fmt: skip
Template = Callable[..., Objects]


def rights(rules: Any) -> list[str]:
    """``verb resource.group``, and a name if it is of one alone."""
    return [
        " ".join([verb, f"{resource}.{group}".rstrip("."), *rule.get("resourceNames", [])])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def may(cluster: Cluster, user: Path, asked: list[str], namespace: str = HERE) -> list[bool]:
    """What the server answers to each."""
    reviews = []
    for right in asked:
        verb, what, *name = right.split()
        resource, _, group = what.partition(".")
        resource, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "namespace": namespace, "resource": resource, "group": group}
        attributes |= {"subresource": subresource, "name": "".join(name)}
        reviews.append({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        })  # fmt: skip
    stdin = {"apiVersion": "v1", "kind": "List", "items": reviews}
    shown = '-ojsonpath={.status.allowed}{"\\n"}'
    told = cluster.kubectl("create", "-f", "-", shown, stdin=stdin, user=user).split()
    assert len(told) == len(asked)
    return [one == "true" for one in told]


@pytest.fixture(scope="module")
def operator(chart: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    user = chart.account(HERE, "placer-operator", tmp_path_factory.mktemp("users"))
    chart.until(lambda: all(may(chart, user, ["list nodes"], "")), "the operator's rights")
    return user


@pytest.mark.parametrize("scope", RULES)
def test_the_operator_may_what_its_rules_say(chart: Cluster, operator: Path, scope: str) -> None:
    asked = [right.replace("LEASE", "placer-operator") for right in rights(RULES[scope])]
    allowed = may(chart, operator, asked, "" if scope == "cluster" else HERE)
    assert [right for right, yes in zip(asked, allowed, strict=True) if not yes] == []
    if scope != "cluster":
        assert not any(may(chart, operator, asked, "people"))


def test_the_operator_may_nothing_else(chart: Cluster, operator: Path) -> None:
    allowed = may(chart, operator, NEVER)
    assert [right for right, yes in zip(NEVER, allowed, strict=True) if yes] == []


def rights_of(objects: Objects, role: str, kind: str = "Role") -> set[str]:
    return set(rights(one(objects, kind, role)["rules"]))


def test_people_have_three_roles_each_with_more_than_the_last(template: Template) -> None:
    viewer, editor, admin = (
        rights_of(template(), f"placer-{role}") for role in ("viewer", "editor", "admin")
    )
    assert viewer < editor < admin
    assert {right.split()[0] for right in viewer} == {"get", "list", "watch"}
    assert "update moefleets.placer.dev" in editor
    assert "approve placementplans.placer.dev" in admin - editor
    assert "patch placementplans.placer.dev" in admin - editor
    assert not any(right.startswith("create placementplans") for right in admin)


def test_rights_are_of_the_namespaces_that_are_named(template: Template) -> None:
    objects = template({"namespaces": ["a", "b"]})
    where = [
        each["metadata"]["namespace"]
        for each in objects
        if each["kind"] == "Role" and each["metadata"]["name"] == "placer-operator"
    ]
    assert where == ["a", "b"]
    assert names(objects, "ClusterRole") == {"moe-placer-operator"}  # nodes are in no namespace
    assert rights_of(objects, "moe-placer-operator", "ClusterRole") == {"list nodes", "watch nodes"}


def test_rights_are_the_clusters_only_if_it_is_said(template: Template) -> None:
    objects = template({"clusterWide": True})
    assert names(objects, "Role") == {"placer-operator-lease"}
    whole = rights_of(objects, "moe-placer-operator-fleets", "ClusterRole")
    assert whole == set(rights(RULES["fleets"]))
    assert names(objects, "ClusterRoleBinding") == {
        "moe-placer-operator",
        "moe-placer-operator-fleets",
    }


WORKERS = {"groupName": "gpus", "replicas": 4, "template": {"spec": {"nodeName": "a"}}}
PODS = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
STATEFUL = {"replicas": 1, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}}}
STATEFUL |= {"template": PODS}
WORKLOADS = {
    "statefulsets.apps": ("apps/v1", "StatefulSet", STATEFUL),
    "rayclusters.ray.io": (
        "ray.io/v1", "RayCluster", {"headGroupSpec": {"a": 1}, "workerGroupSpecs": [WORKERS]}),
}  # fmt: skip


def any_object(group: str, kind: str, plural: str) -> dict[str, Any]:
    """A kind of others, of which the server knows no more than its name."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True}
    about = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": about,
            "versions": [version | {"schema": {"openAPIV3Schema": schema}}],
        },
    }


@pytest.fixture(params=WORKLOADS)
def workload(request: pytest.FixtureRequest, chart: Cluster) -> Iterator[str]:
    """One of each kind, by its name for kubectl."""
    plural, _, group = request.param.partition(".")
    version, kind, spec = WORKLOADS[request.param]
    if group != "apps" and chart.run("kubectl", "get", "crd", request.param).returncode:
        chart.kubectl("create", "-f", "-", stdin=any_object(group, kind, plural))
        chart.kubectl("wait", "--for=condition=Established", f"crd/{request.param}")
    made = {"apiVersion": version, "kind": kind, "spec": spec}
    made["metadata"] = {"name": "served", "namespace": HERE, "labels": {"a": "b"}}
    chart.kubectl("apply", "--server-side", "-f", "-", stdin=made)
    yield f"{request.param}/served"
    chart.kubectl("-n", HERE, "delete", request.param, "served")


def test_of_a_workload_the_operator_changes_replicas_alone(
    chart: Cluster, operator: Path, workload: str
) -> None:
    plural, _, group = workload.partition("/")[0].partition(".")
    url = f"/apis/{WORKLOADS[f'{plural}.{group}'][0]}/namespaces/{HERE}/{plural}/served"

    def patch(path: str, value: Any) -> str:
        body = [{"op": "add", "path": path, "value": value}]
        return chart.patch(url, body, operator)

    containers = [{"name": "c", "image": "another"}]
    replicas = "/spec/replicas"
    inside: list[tuple[str, Any]] = [("/spec/template/spec/containers", containers)]
    if workload.startswith("ray"):
        replicas = "/spec/workerGroupSpecs/0/replicas"
        inside = [
            ("/spec/workerGroupSpecs/0/template/spec/containers", containers),
            ("/spec/workerGroupSpecs/0/rayStartParams", {"x": "y"}),
            ("/spec/workerGroupSpecs/-", WORKERS | {"groupName": "mine"}),
            ("/spec/headGroupSpec/template", {}),
        ]
    assert patch(replicas, 2) == ""
    for path, value in [
        *inside,
        ("/metadata/labels/x", "y"),
        ("/metadata/annotations", {"x": "y"}),
    ]:
        said = patch(path, value)
        assert "the operator leaves" in said
        assert "only" in said
