"""Each value of the chart, and what it changes in what is rendered."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.kube.conftest import CHART, ChartError
from tests.kube.rendered import (
    Objects,
    container,
    environment,
    names,
    one,
    option,
    pod,
    pods,
    volume,
)

CONTROLLER, OPERATOR = "placer-controller", "placer-operator"
FRONT = {"name": "chat", "kind": "front", "pool": "moe.chat", "keysSecret": "keys"}
PICKER = FRONT | {"name": "picks", "kind": "picker"}
SMALL = {"requests": {"cpu": "2"}}
PEER = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
PAGE = {"controller": {"page": {"enabled": True}}}
ELSEWHERE = {
    "controller": {"enabled": False, "address": "other:7077"}, "tokens": {"secretName": "theirs"},
}  # fmt: skip
Template = Callable[..., Objects]


def routed(**keys: Any) -> Any:
    return {"routers": [FRONT | keys]}


def metrics(what: str, **keys: Any) -> Any:
    return {"metrics": {what: {"enabled": True} | keys}}


def claim(objects: Objects) -> Any:
    return one(objects, "PersistentVolumeClaim", CONTROLLER)["spec"]


def settings(objects: Objects) -> Any:
    return yaml.safe_load(one(objects, "ConfigMap", CONTROLLER)["data"]["controller.yaml"])


def all_of(key: str) -> Callable[[Objects], list[Any]]:
    """Of every pod, one value each."""
    return lambda objects: [spec.get(key) for _, spec in pods(objects)]


def issued(objects: Objects) -> Any:
    return one(objects, "Certificate", "placer-tls")["spec"]["issuerRef"]


def ingress(component: str, number: int) -> Callable[[Objects], Any]:
    def found(objects: Objects) -> Any:
        return one(objects, "NetworkPolicy", f"placer-{component}")["spec"]["ingress"][number][
            "from"
        ]

    return found


def labels(kind: str, name: str) -> Callable[[Objects], Any]:
    return lambda objects: one(objects, kind, name)["metadata"]["labels"].get("team")


# Key: values, where it shows, and what stands there.
CASES: dict[str, tuple[Any, Callable[[Objects], Any], Any]] = {
    "global": ({"global": {"x": 1}}, lambda o: bool(o), True),
    "image.repository": ({"image": {"repository": "r.io/p"}},
        lambda o: {container(o, name)["image"] for name, _ in pods(o)}, {"r.io/p:0.1.0"}),
    "image.tag": ({"image": {"tag": "7"}}, lambda o: container(o, OPERATOR)["image"], "placer:7"),
    "image.pullPolicy": ({"image": {"pullPolicy": "Always"}},
        lambda o: {container(o, name)["imagePullPolicy"] for name, _ in pods(o)}, {"Always"}),
    "imagePullSecrets": ({"imagePullSecrets": [{"name": "s"}]},
        all_of("imagePullSecrets"), [[{"name": "s"}]] * 3),
    "namespaces": ({"namespaces": ["a", "b"]},
        lambda o: option(o, OPERATOR, "--namespace"), ["a", "b"]),
    "clusterWide": ({"clusterWide": True}, lambda o: option(o, OPERATOR, "--namespace"), []),
    "controller.enabled": (ELSEWHERE, lambda o: names(o, "StatefulSet"), set()),
    "controller.address": (ELSEWHERE,
        lambda o: environment(o, OPERATOR)["PLACER_CONTROLLER"]["value"], "other:7077"),
    "controller.config": ({"controller": {"config": {"every_s": 5}}}, settings, {"every_s": 5}),
    "controller.page.enabled": (PAGE,
        lambda o: (option(o, CONTROLLER, "--page"),
                   [each["port"] for each in one(o, "Service", CONTROLLER)["spec"]["ports"]]),
        (["0.0.0.0:7078"], [7077, 9090, 7078])),
    "controller.storage.size": ({"controller": {"storage": {"size": "5Gi"}}},
        lambda o: claim(o)["resources"]["requests"], {"storage": "5Gi"}),
    "controller.storage.className": ({"controller": {"storage": {"className": "fast"}}},
        lambda o: claim(o)["storageClassName"], "fast"),
    "controller.storage.existingClaim": ({"controller": {"storage": {"existingClaim": "mine"}}},
        lambda o: (volume(o, CONTROLLER, "ledger")["persistentVolumeClaim"],
                   names(o, "PersistentVolumeClaim")), ({"claimName": "mine"}, set())),
    "controller.ray.address": ({"controller": {"ray": {"address": "ray-head-svc:6379"}}},
        lambda o: (option(o, CONTROLLER, "--ray"), option(o, CONTROLLER, "--host")),
        (["ray-head-svc:6379"], ["ray"])),
    "controller.ray.image.repository": (
        {"controller": {"ray": {"address": "a:1", "image": {"repository": "r"}}}},
        lambda o: container(o, CONTROLLER)["image"], "r:0.1.0"),
    "controller.ray.image.tag": ({"controller": {"ray": {"address": "a:1", "image": {"tag": "7"}}}},
        lambda o: container(o, CONTROLLER)["image"], "placer-ray:7"),
    "controller.ray.tokenSecret": ({"controller": {"ray": {"address": "a:1", "tokenSecret": "t"}}},
        lambda o: environment(o, CONTROLLER)["RAY_AUTH_TOKEN"]["valueFrom"],
        {"secretKeyRef": {"name": "t", "key": "auth_token"}}),
    "controller.resources": ({"controller": {"resources": SMALL}},
        lambda o: container(o, CONTROLLER)["resources"]["requests"]["cpu"], "2"),
    "operator.enabled": ({"operator": {"enabled": False}},
        lambda o: (names(o, "Deployment"), names(o, "ServiceAccount"), names(o, "ClusterRole")),
        (set(), set(), set())),
    "operator.replicas": ({"operator": {"replicas": 2}},
        lambda o: (one(o, "Deployment", OPERATOR)["spec"]["replicas"],
                   names(o, "PodDisruptionBudget")), (2, {OPERATOR})),
    "operator.resources": ({"operator": {"resources": SMALL}},
        lambda o: container(o, OPERATOR)["resources"]["requests"]["cpu"], "2"),
    "routers": ({"routers": [FRONT, PICKER]},
        lambda o: names(o, "Deployment"), {OPERATOR, "placer-chat", "placer-picks"}),
    "routers[].name": (routed(name="x"), lambda o: "placer-x" in names(o, "Service"), True),
    "routers[].kind": ({"routers": [PICKER]},
        lambda o: container(o, "placer-picks")["command"], ["placer", "picker"]),
    "routers[].pool": (routed(pool="p"), lambda o: option(o, "placer-chat", "--pool"), ["p"]),
    "routers[].keysSecret": (routed(keysSecret="k"),
        lambda o: volume(o, "placer-chat", "keys")["secret"]["secretName"], "k"),
    "routers[].engineKeySecret": (routed(engineKeySecret="k"),
        lambda o: (volume(o, "placer-chat", "engine-key")["secret"]["secretName"],
                   option(o, "placer-chat", "--engine-key")),
        ("k", ["/etc/placer/engine-key/key"])),
    "routers[].replicas": (routed(replicas=1),
        lambda o: (one(o, "Deployment", "placer-chat")["spec"]["replicas"],
                   names(o, "PodDisruptionBudget")), (1, set())),
    "routers[].scheduler": (routed(scheduler="least_loaded"),
        lambda o: option(o, "placer-chat", "--scheduler"), ["least_loaded"]),
    "routers[].tokenizer": (routed(tokenizer="engine"),
        lambda o: option(o, "placer-chat", "--tokenizer"), ["engine"]),
    "routers[].limits": (routed(limits={"drain_s": 10}),
        lambda o: (yaml.safe_load(one(o, "ConfigMap", "placer-chat")["data"]["limits.yaml"]),
                   pod(o, "placer-chat")["terminationGracePeriodSeconds"]), ({"drain_s": 10}, 25)),
    "routers[].resources": (routed(resources=SMALL),
        lambda o: container(o, "placer-chat")["resources"], SMALL),
    "tls.secretName": ({"tls": {"secretName": "mine"}},
        lambda o: (volume(o, CONTROLLER, "tls")["secret"]["secretName"], names(o, "Certificate")),
        ("mine", set())),
    "tls.issuer.name": ({"tls": {"issuer": {"name": "corp"}}},
        lambda o: (issued(o)["name"], names(o, "Issuer")), ("corp", set())),
    "tls.issuer.kind": ({"tls": {"issuer": {"name": "corp", "kind": "Issuer"}}},
        lambda o: (issued(o)["name"], issued(o)["kind"]), ("corp", "Issuer")),
    "tls.issuer.group": ({"tls": {"issuer": {"name": "corp", "group": "g.io"}}},
        lambda o: issued(o)["group"], "g.io"),
    "tokens.secretName": ({"tokens": {"secretName": "mine"}},
        lambda o: (volume(o, CONTROLLER, "tokens")["secret"]["secretName"], names(o, "Secret")),
        ("mine", set())),
    "admission.enabled": ({"admission": {"enabled": False}},
        lambda o: names(o, "ValidatingAdmissionPolicy"), set()),
    "admission.mutating": ({"admission": {"mutating": True}},
        lambda o: names(o, "MutatingAdmissionPolicy"), {"moe-placer-approver"}),
    "networkPolicy.enabled": ({"networkPolicy": {"enabled": False}},
        lambda o: names(o, "NetworkPolicy"), set()),
    "networkPolicy.metricsFrom": ({"networkPolicy": {"metricsFrom": PEER}},
        lambda o: (ingress("controller", 1)(o), ingress("operator", 0)(o)), (PEER, PEER)),
    "networkPolicy.clientsFrom": (routed() | {"networkPolicy": {"clientsFrom": PEER}},
        ingress("chat", 0), PEER),
    "networkPolicy.pageFrom": (PAGE | {"networkPolicy": {"pageFrom": PEER}},
        lambda o: PEER in [each.get("from") for each in
            one(o, "NetworkPolicy", CONTROLLER)["spec"]["ingress"]], True),
    "metrics.serviceMonitor.enabled": (metrics("serviceMonitor") | {"routers": [FRONT, PICKER]},
        lambda o: names(o, "ServiceMonitor"), {CONTROLLER, "placer-chat", "placer-picks"}),
    "metrics.serviceMonitor.interval": (metrics("serviceMonitor", interval="5s"),
        lambda o: one(o, "ServiceMonitor", CONTROLLER)["spec"]["endpoints"][0]["interval"], "5s"),
    "metrics.serviceMonitor.labels": (metrics("serviceMonitor", labels={"team": "a"}),
        labels("ServiceMonitor", CONTROLLER), "a"),
    "metrics.prometheusRule.enabled": (metrics("prometheusRule"),
        lambda o: one(o, "PrometheusRule", "placer")["spec"],
        yaml.safe_load((CHART / "files/alerts.yaml").read_text())),
    "metrics.prometheusRule.labels": (metrics("prometheusRule", labels={"team": "a"}),
        labels("PrometheusRule", "placer"), "a"),
    "metrics.dashboard.enabled": (metrics("dashboard"),
        lambda o: json.loads(one(o, "ConfigMap", "placer-dashboard")["data"]["placer.json"]),
        json.loads((CHART / "files/dashboard.json").read_text())),
    "metrics.dashboard.labels": (metrics("dashboard", labels={"team": "a"}),
        labels("ConfigMap", "placer-dashboard"), "a"),
    "nodeSelector": ({"nodeSelector": {"cpu": "yes"}},
        all_of("nodeSelector"), [{"cpu": "yes"}] * 3),
    "tolerations": ({"tolerations": [{"operator": "Exists"}]},
        all_of("tolerations"), [[{"operator": "Exists"}]] * 3),
}  # fmt: skip


@pytest.mark.parametrize("key", CASES)
def test_a_value_changes_what_it_says(template: Template, key: str) -> None:
    values, shown, expected = CASES[key]
    with_tls = {"tls": {"secretName": "placer-tls"}} if "tls" not in values else {}
    assert shown(template(with_tls | values)) == expected


@pytest.fixture(scope="module")
def defaults(template: Template) -> dict[bool, Objects]:
    """Without a word, but for a front if it is about routers."""
    return {False: template(), True: template({"routers": [FRONT]})}


@pytest.mark.parametrize("key", sorted(set(CASES) - {"global"}))
def test_without_it_something_else_is_rendered(defaults: dict[bool, Objects], key: str) -> None:
    values, shown, expected = CASES[key]
    try:
        found = shown(defaults["routers" in values])
    except (AssertionError, KeyError):
        return  # it is not even there
    assert found != expected


# Settings that have a default, of what is off unless it is asked for.
OFF = {
    "global", "controller.ray.image.repository", "controller.ray.image.tag", "tls.issuer.kind",
    "tls.issuer.group", "networkPolicy.clientsFrom", "networkPolicy.pageFrom",
    "metrics.serviceMonitor.interval", "metrics.serviceMonitor.labels",
    "metrics.prometheusRule.labels", "metrics.dashboard.labels",
}  # fmt: skip


def alone(key: str) -> Any:
    """The case's value of that key, without the others that go with it."""
    found = CASES[key][0]
    for part in key.split("."):
        found = found[part]
    for part in reversed(key.split(".")):
        found = {part: found}
    return found


@pytest.mark.parametrize("key", sorted(key for key in CASES if "[]" not in key))
def test_a_value_alone_shows_or_is_refused(template: Template, key: str) -> None:
    fixed = {} if key.startswith("tokens") else {"tokens": {"secretName": "drawn"}}
    try:
        shows = template(fixed | alone(key)) != template(fixed)
    except ChartError:
        return
    assert shows == (key not in OFF)


def test_every_key_of_the_readme_has_a_case() -> None:
    rows = set(re.findall(r"^\| `(.*?)`", (CHART / "README.md").read_text(), flags=re.MULTILINE))
    parents = {"image", "controller.ray.image", "imagePullSecrets[].name"}  # told by other rows
    assert rows - parents == set(CASES)
