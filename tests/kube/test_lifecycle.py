"""Both charts installed, upgraded, rolled back and uninstalled: what survives, and what goes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.cluster import Cluster
from tests.kube.conftest import CHART, CRDS
from tests.kube.objects import fleet

HERE, RELEASE = "lifecycle", "second"
SECRETS = f"{RELEASE}-placer-tokens"
KINDS = (
    "statefulsets,deployments,services,configmaps,secrets,serviceaccounts,persistentvolumeclaims,"
    "roles,rolebindings,networkpolicies,poddisruptionbudgets,clusterroles,clusterrolebindings,"
    "validatingadmissionpolicies,validatingadmissionpolicybindings"
)


@pytest.fixture
def kept(crds: Cluster) -> Iterator[Cluster]:
    """A fleet that must be the same in the end."""
    crds.namespace(HERE)
    crds.kubectl("create", "-f", "-", stdin=fleet(namespace=HERE))
    before = crds.get("-n", HERE, "moef", "chat")
    yield crds
    after = crds.get("-n", HERE, "moef", "chat")
    assert after == before
    crds.kubectl("-n", HERE, "delete", "moef", "chat")


def release(cluster: Cluster, *arguments: str) -> str:
    return cluster.helm(*arguments, "-n", HERE)


def mine(cluster: Cluster) -> set[str]:
    """All that is of the release, by kind and name."""
    found = cluster.get(KINDS, "-A", "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
    return {f"{one['kind']}/{one['metadata']['name']}" for one in found}


def tokens(cluster: Cluster) -> Any:
    return cluster.get("-n", HERE, "secret", SECRETS)["data"]


def replicas(cluster: Cluster) -> int:
    found = cluster.get("-n", HERE, "deployment", f"{RELEASE}-placer-operator")
    return int(found["spec"]["replicas"])


def test_the_chart_comes_changes_goes_back_and_leaves_the_ledger(kept: Cluster) -> None:
    set_ = ["--set", "tls.secretName=tls"]
    notes = release(kept, "install", RELEASE, str(CHART), *set_)
    first, drawn = mine(kept), tokens(kept)
    assert f"StatefulSet/{RELEASE}-placer-controller" in first
    commands = [line.strip() for line in notes.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in commands] == ["helm", "kubectl", "kubectl"]
    assert f"Secret {RELEASE}-placer-agent" in notes

    release(kept, "upgrade", RELEASE, str(CHART), *set_, "--set", "operator.replicas=2")
    assert mine(kept) == first | {f"PodDisruptionBudget/{RELEASE}-placer-operator"}
    assert replicas(kept) == 2
    assert tokens(kept) == drawn

    release(kept, "rollback", RELEASE, "1")
    assert mine(kept) == first
    assert replicas(kept) == 1
    assert tokens(kept) == drawn

    release(kept, "uninstall", RELEASE)
    assert mine(kept) == {f"PersistentVolumeClaim/{RELEASE}-placer-controller"}

    release(kept, "install", RELEASE, str(CHART), *set_)  # which takes the ledger up again
    assert mine(kept) == first
    release(kept, "uninstall", RELEASE)
    kept.kubectl("-n", HERE, "delete", "pvc", f"{RELEASE}-placer-controller")


@pytest.mark.parametrize("path", sorted((CHART / "ci").glob("*-values.yaml")), ids=lambda p: p.stem)
def test_the_server_takes_every_set_of_values(kept: Cluster, template: Any, path: Any) -> None:
    for name in ("moe-chat", "moe-code"):
        kept.namespace(name)
    others = ("cert-manager.io", "monitoring.coreos.com")
    objects = template(yaml.safe_load(path.read_text()), namespace=HERE)
    known = [one for one in objects if not one["apiVersion"].startswith(others)]
    whole = {"apiVersion": "v1", "kind": "List", "items": known}
    done = kept.kubectl("apply", "--dry-run=server", "--server-side", "-f", "-", stdin=whole)
    assert len(done.splitlines()) == len(known)


def test_the_kinds_survive_their_chart(kept: Cluster) -> None:
    def kinds() -> Any:
        found = kept.get("crd")["items"]
        return {
            one["metadata"]["name"]: one["metadata"]["uid"]
            for one in found
            if one["spec"]["group"] == "placer.dev"
        }

    before = kinds()
    assert set(before) == {"moefleets.placer.dev", "placementplans.placer.dev"}
    kept.helm("upgrade", "placer-crds", CRDS, "-n", "default")
    assert kinds() == before
    kept.helm("rollback", "placer-crds", "1", "-n", "default")
    assert kinds() == before
    kept.helm("uninstall", "placer-crds", "-n", "default")
    assert kinds() == before
    kept.helm("install", "placer-crds", CRDS, "-n", "default")  # which takes them up again
    assert kinds() == before


def laxer(schema: Any) -> Any:
    """Without rules, defaults and lists of what may stand there."""
    if isinstance(schema, list):
        return [laxer(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    without = ("x-kubernetes-validations", "default", "enum")
    return {key: laxer(one) for key, one in schema.items() if key not in without}


def test_objects_of_an_earlier_schema_live_on(kept: Cluster, tmp_path: Path) -> None:
    """What a fleet says that was valid once stays until somebody changes it."""
    earlier = tmp_path / "placer-crds"
    shutil.copytree(CRDS, earlier)
    path = earlier / "templates" / "moefleets.yaml"
    definition = yaml.safe_load(path.read_text())
    version = definition["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"] = laxer(version["schema"]["openAPIV3Schema"])
    for later in ("preScheduling", "slo", "budgets"):
        del schema["properties"]["spec"]["properties"][later]
    path.write_text(yaml.safe_dump(definition))

    kept.helm("upgrade", "placer-crds", earlier, "-n", "default")
    written = fleet([("guard", 2), ("mode", "careful")], "before", HERE)
    kept.until(
        lambda: not kept.run("kubectl", "create", "-f", "-", stdin=written).returncode,
        "the earlier schema is in force",
    )
    kept.helm("upgrade", "placer-crds", CRDS, "-n", "default")
    put = ["-n", HERE, "patch", "moef", "before", "--type=merge", "-p"]
    kept.until(
        lambda: "preScheduling" in kept.get("-n", HERE, "moef", "before")["spec"],
        "the schema of now is in force",
    )

    kept.kubectl(*put, '{"status": {"pool": "lifecycle.before"}}', "--subresource=status")
    kept.kubectl(*put, '{"spec": {"overlap": 0.5}}')
    spec = kept.get("-n", HERE, "moef", "before")["spec"]
    assert (spec["guard"], spec["mode"], spec["overlap"]) == (2, "careful", 0.5)
    assert spec["preScheduling"] == {"enabled": False, "controlPercent": 5}
    assert "spec.guard" in kept.refused(*put, '{"spec": {"guard": 3}}')
    kept.kubectl(*put, '{"spec": {"guard": 0.3, "mode": "advisory"}}')
    kept.kubectl("-n", HERE, "delete", "moef", "before")
