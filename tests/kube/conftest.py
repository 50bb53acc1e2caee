"""What tests on an API server share. They are one group: one server serves them all."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.cluster import NONE, ROOT, Cluster, found

HERE = Path(__file__).parent
CRDS, CHART = ROOT / "helm" / "placer-crds", ROOT / "helm" / "placer"


class ChartError(Exception):
    """What helm says of values that it refuses."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            is_loop = item.path.name == "test_node.py"
            item.add_marker(pytest.mark.node if is_loop else pytest.mark.kube)
            item.add_marker(pytest.mark.xdist_group("kube"))


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster | None]:
    with found(tmp_path_factory.mktemp("kube")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster(_server: Cluster | None) -> Cluster:
    """A real API server, with namespaces for people and the operator."""
    if _server is None:
        pytest.skip(NONE)
    if missing := [name for name in ("kubectl", "helm") if not _server.has(name)]:
        pytest.skip(f"no {missing[0]}: put it on PATH")
    for name in ("people", "placer-system"):
        _server.namespace(name)
    return _server


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> Cluster:
    """With placer's kinds."""
    cluster.helm("upgrade", "--install", "placer-crds", CRDS, "-n", "default")
    cluster.kubectl("wait", "--for=condition=Established", "crd/moefleets.placer.dev")
    cluster.kubectl("wait", "--for=condition=Established", "crd/placementplans.placer.dev")
    return cluster


@pytest.fixture(scope="session")
def chart(crds: Cluster) -> Cluster:
    """With the chart as release placer in placer-system, for the fleets of that namespace."""
    values = ["--set", "tls.secretName=placer-tls"]
    crds.helm("upgrade", "--install", "placer", CHART, "-n", "placer-system", *values)
    return crds


@pytest.fixture(scope="session")
def helm(_server: Cluster | None) -> Cluster:
    """What can render charts, though there may be no server."""
    found = _server or Cluster(Path(os.devnull))
    if not found.has("helm"):
        pytest.skip("no helm: put it on PATH, or provide the rig, which brings it")
    return found


@pytest.fixture(scope="session")
def template(helm: Cluster) -> Callable[..., list[Any]]:
    """The chart's objects with these values, as ``helm template`` renders them."""

    def rendered(values: Any = None, chart: Path = CHART, namespace: str = "moe") -> list[Any]:
        text = yaml.safe_dump(values or {})
        done = helm.run("helm", "template", "placer", chart, "-n", namespace, "-f-", stdin=text)
        if done.returncode:
            raise ChartError(done.stderr)
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    return rendered
