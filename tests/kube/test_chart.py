"""What holds of the chart whatever its values."""

import base64
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from controller.config import read_config
from controller.router.shared.settings import read_limits
from controller.server.security import Role, Tokens
from placer.cli.main import app
from tests.kube.cluster import ROOT, Cluster
from tests.kube.conftest import CHART, CRDS, ChartError
from tests.kube.rendered import Objects, container, names, one, pod, pods, volume

SETS = sorted((CHART / "ci").glob("*-values.yaml"))
# Kinds of others, whose schemas are not Kubernetes' own.
OTHERS = {"cert-manager.io", "monitoring.coreos.com"}
ROUTER = {"name": "a", "kind": "front", "pool": "p", "keysSecret": "k"}
Template = Callable[..., Objects]


def values(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module", params=SETS, ids=lambda path: path.stem.removesuffix("-values"))
def objects(request: pytest.FixtureRequest, template: Template) -> Objects:
    """The chart with each of its six sets of values."""
    return template(values(request.param))


@pytest.mark.parametrize("chart", [CRDS, CHART], ids=lambda path: path.name)
@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_helm_finds_nothing_to_complain_of(helm: Cluster, chart: Path, path: Path) -> None:
    given = ["--values", str(path)] if chart == CHART else []
    helm.helm("lint", "--strict", chart, *given)


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_object_is_as_its_kind_has_it(objects: Objects, version: str) -> None:
    assert len(SETS) >= 6
    for each in objects:
        is_newer = each["kind"].startswith("MutatingAdmission")  # only if a value asks for it
        if each["apiVersion"].split("/")[0] not in OTHERS and not (is_newer and version == "1.30"):
            kubernetes_validate.validate(each, version, strict=True)


def test_every_pod_is_nobodys_and_writes_only_where_it_may(objects: Objects) -> None:
    for name, spec in pods(objects):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert key not in spec
        context = container(objects, name)["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = {
            mount["name"]
            for mount in container(objects, name)["volumeMounts"]
            if not mount.get("readOnly")
        }
        assert writable <= {"tmp", "ledger"}
        assert not any("hostPath" in each for each in spec["volumes"])


def test_every_pod_says_what_it_needs_and_whether_it_lives(objects: Objects) -> None:
    for name, spec in pods(objects):
        resources = container(objects, name)["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        assert "memory" in resources["limits"]
        if spec.get("restartPolicy") != "Never":
            probes = {"startupProbe", "readinessProbe", "livenessProbe"}
            assert probes <= set(container(objects, name))


def test_nobody_but_the_operator_has_the_api_servers_token(objects: Objects) -> None:
    with_token = {name for name, spec in pods(objects) if spec["automountServiceAccountToken"]}
    assert with_token <= {"placer-operator"}


def test_every_pod_is_behind_a_network_policy(objects: Objects) -> None:
    chosen = [
        each["spec"]["podSelector"]["matchLabels"].items()
        for each in objects
        if each["kind"] == "NetworkPolicy"
    ]
    running = [each for each in objects if each["kind"] in ("StatefulSet", "Deployment", "Job")]
    assert running
    for each in running:
        labels = each["spec"]["template"]["metadata"]["labels"].items()
        assert sum(selector <= labels for selector in chosen) == 1


def test_every_service_finds_a_pod_with_its_port(objects: Objects) -> None:
    running = [each for each in objects if each["kind"] in ("StatefulSet", "Deployment")]
    for service in (each for each in objects if each["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        (behind,) = (
            each["spec"]["template"]
            for each in running
            if selector <= each["spec"]["template"]["metadata"]["labels"].items()
        )
        ports = {port["name"] for port in behind["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_every_command_and_option_is_placers(objects: Objects) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, _ in pods(objects):
        program, command = container(objects, name)["command"]
        args = container(objects, name)["args"]
        if program == "sh":  # Ray first
            assert 'exec placer serve "$@"' in args[0]
            command = "serve"
        known = {text for param in commands[command].params for text in param.opts}
        assert {text.split("=")[0] for text in args if text.startswith("--")} <= known


def test_a_controller_in_ray_begins_as_a_node_of_it(template: Template, tmp_path: Path) -> None:
    """The shell's line, run with a ray and a placer that write down what they are given."""
    ray = template({"controller": {"ray": {"address": "ray-head-svc:6379"}}})
    told = tmp_path / "told"
    for name in ("ray", "placer"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {told}\n')
        (tmp_path / name).chmod(0o755)
    spec = container(ray, "placer-controller")
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_ADDRESS": "ray-head-svc:6379"}
    subprocess.run([*spec["command"], *spec["args"]], env=env, check=True)
    joins, serves = told.read_text().splitlines()
    assert joins == "ray start --address=ray-head-svc:6379 --num-cpus=0 --disable-usage-stats"
    assert serves.startswith(
        "placer serve --host=ray --ray=ray-head-svc:6379 --listen=0.0.0.0:7077"
    )


def test_what_a_command_reads_is_mounted(objects: Objects) -> None:
    for name, spec in pods(objects):
        places = [mount["mountPath"] for mount in container(objects, name)["volumeMounts"]]
        env = [each.get("value", "") for each in container(objects, name)["env"]]
        told = [text.partition("=")[2] for text in container(objects, name)["args"]] + env
        paths = [text for text in told if text.startswith("/")]
        assert paths
        for path in paths:
            assert any(f"{path}/".startswith(f"{place}/") for place in places), path
        mounted = {mount["name"] for mount in container(objects, name)["volumeMounts"]}
        assert mounted == {each["name"] for each in spec["volumes"]}


def test_settings_and_limits_are_read_by_placer(objects: Objects, tmp_path: Path) -> None:
    for each in (each for each in objects if each["kind"] == "ConfigMap"):
        for name, text in each["data"].items():
            file = tmp_path / name
            file.write_text(text)
            if name == "controller.yaml":
                assert read_config(file).every_s == yaml.safe_load(text).get("every_s", 30)
            elif name == "limits.yaml":
                assert read_limits(file).drain_s == yaml.safe_load(text).get("drain_s", 60)


def test_tokens_that_are_drawn_open_what_they_should(template: Template, tmp_path: Path) -> None:
    drawn = template()
    secret, agents = (one(drawn, "Secret", f"placer-{name}") for name in ("tokens", "agent"))
    told = {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}
    path = tmp_path / "tokens.yaml"
    path.write_text(told["tokens.yaml"])
    path.chmod(0o600)
    for role, name in ((Role.AGENT, "agent"), (Role.OPERATOR, "operator"), (Role.FRONT, "front")):
        assert Tokens(path).role(told[name]) == role
    assert agents["data"] == {"token": secret["data"]["agent"]}


def test_no_caller_mounts_anothers_token(template: Template) -> None:
    drawn = template({"routers": [ROUTER]})
    for name, token in (("placer-operator", "operator"), ("placer-a", "front")):
        items = volume(drawn, name, "token")["secret"]["items"]
        assert items == [{"key": token, "path": "token"}]
        assert volume(drawn, name, "ca")["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]
    assert "tls" not in {each["name"] for each in pod(drawn, "placer-operator")["volumes"]}


def levels(schema: Any, defs: Any, value: Any) -> Iterator[Any]:
    """The values with one key that nobody knows, at each level in turn."""
    yield {**(value or {}), "unknown": 1}
    for name, spec in schema.get("properties", {}).items():
        spec = defs.get(spec.get("$ref", "").rpartition("/")[2], {}) | spec
        closed = False in (spec.get("additionalProperties"), spec.get("unevaluatedProperties"))
        if spec.get("type") == "object" and closed:
            for inner in levels(spec, defs, (value or {}).get(name)):
                yield {name: inner}


def test_a_key_that_nobody_knows_is_refused_at_every_level(template: Template) -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    tried = list(levels(schema, schema["$defs"], {}))
    tried += [
        {"routers": [ROUTER | {"unknown": 1}]},
        {"imagePullSecrets": [{"name": "a", "unknown": 1}]},
    ]
    assert len(tried) > 20
    for values in tried:
        with pytest.raises(ChartError, match=r"not allowed|false schema"):
            template(values)


def here(**controller: Any) -> Any:
    return {"controller": controller}


def elsewhere(**controller: Any) -> Any:
    """Of a controller of another release, whose token and authority are known."""
    known = {"tokens": {"secretName": "t"}, "tls": {"secretName": "s"}}
    return known | here(enabled=False, address="a:1", **controller)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"clusterWide": True, "namespaces": ["a"]}, "leave namespaces empty, or set clusterWide"),
        (elsewhere() | here(enabled=False), "needs the host:port of another; set it"),
        (here(address="a:1"), "leave it empty, or set controller.enabled to false"),
        (elsewhere(config={"every_s": 5}), "controller.config is of a controller of this release"),
        (elsewhere(page={"enabled": True}), "controller.page.enabled is of .* set controller"),
        (elsewhere(ray={"address": "b:2"}), "controller.ray.address is of .* write it where"),
        (elsewhere(storage={"className": "fast"}), "controller.storage.className is of"),
        (elsewhere(storage={"existingClaim": "c"}), "controller.storage.existingClaim is of"),
        (elsewhere() | {"tokens": {}}, "tokens.secretName: .* give a Secret with those"),
        (elsewhere() | {"tls": {}}, "tls.secretName: .* that one's ca.crt, or the tls.issuer.name"),
        (here(ray={"tokenSecret": "t"}), "give its controller.ray.address, or leave it empty"),
        (
            here(storage={"existingClaim": "c", "className": "fast"}),
            "className is for a new claim, and existingClaim names one: leave one of them empty",
        ),
        (
            {"tls": {"secretName": "s", "issuer": {"name": "corporate"}}},
            "tls.issuer.name makes certificates, and tls.secretName names one",
        ),
        ({"admission": {"enabled": False, "mutating": True}}, "set that to true, or mutating to f"),
        ({"routers": [ROUTER, ROUTER]}, "two are called a: give each a name of its own"),
        (here(storage={"size": "0Gi"}), "/controller/storage/size"),
        ({"image": {"tag": "sha256:abc"}}, "/image/tag"),
    ],
)
def test_values_that_clash_are_refused_with_the_remedy(
    template: Template, values: Any, remedy: str
) -> None:
    with pytest.raises(ChartError, match=remedy):
        template(values)


def test_an_old_server_is_refused(helm: Cluster) -> None:
    for chart in (CRDS, CHART):
        done = helm.run("helm", "template", "x", chart, "--kube-version", "1.29.0")
        assert "incompatible with Kubernetes" in done.stderr


def test_what_is_made_from_the_schema_is_current() -> None:
    check = [sys.executable, str(ROOT / "helm" / "values.py"), "--check"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(check, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_artifact_hub_is_told_of_the_kinds_and_images_that_there_are(template: Template) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    told = {key.split("/")[1]: text for key, text in chart["annotations"].items()}
    kinds = {each["metadata"]["name"] for each in template({}, CRDS)}
    assert {each["name"] for each in yaml.safe_load(told["crds"])} == kinds
    images = {each["image"] for each in yaml.safe_load(told["images"])}
    with_ray = template({"controller": {"ray": {"address": "a:1"}}})
    used = {
        container(both, name)["image"] for both in (template(), with_ray) for name, _ in pods(both)
    }
    assert images == used
    assert {each["kind"] for each in yaml.safe_load(told["crdsExamples"])} == {"MoEFleet"}
    assert names(template(), "Job") == {"placer-test"}


def test_the_certificate_has_every_name_that_somebody_asks_for(template: Template) -> None:
    monitored = {"metrics": {"serviceMonitor": {"enabled": True}}, "routers": [ROUTER]}
    objects = template(monitored)
    known = set(one(objects, "Certificate", "placer-tls")["spec"]["dnsNames"])
    (endpoint,) = one(objects, "ServiceMonitor", "placer-a")["spec"]["endpoints"]
    asked = {endpoint["tlsConfig"]["serverName"]}
    for name, _ in pods(objects):
        spec = container(objects, name)
        told = [text.partition("=")[2] for text in spec["args"]]
        told += [each.get("value", "") for each in spec["env"]]
        asked |= {text.partition(":")[0] for text in told if ".svc:" in text}
    assert asked == {"placer-a.moe.svc", "placer-controller.moe.svc"}
    assert asked <= known
