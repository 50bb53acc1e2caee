"""Tokens that are replaced while the operator runs: the API server's, and the controller's."""

from pathlib import Path
from typing import Any

import grpc
import yaml

from controller.kube.objects import FLEETS
from placer.v1 import fleet_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from tests.kube import test_operator_controller as real
from tests.kube import worlds
from tests.kube.cluster import Cluster
from tests.kube.operators import become, operating, until
from tests.kube.proxy import between
from tests.kube.stand_in import StandIn, serving

HERE = "placer-system"
OLD, NEW = "the-operators-before", "the-operators-of-now"
OPERATOR = "tok-placer-system-placer-operator"


def test_a_new_token_is_read_when_the_old_one_is_refused(chart: Cluster, tmp_path: Path) -> None:
    stand_in, token = StandIn(), tmp_path / "token"
    worlds.on(chart.kubeconfig, lambda api: worlds.served(api, stand_in, HERE, "chat"))
    with between(chart) as proxy, serving(stand_in) as address:
        config = tmp_path / "kubeconfig"
        config.write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": proxy.url}}],
            "users": [{"name": "here", "user": {"tokenFile": str(token)}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        }))  # fmt: skip
        token.write_text("old")
        proxy.tokens = {"old": OPERATOR}
        options = ("--namespace", HERE, "--lease", "placer-operator")
        with operating(tmp_path, config, address, *options):
            apply(chart, worlds.fleet(HERE, "chat"))
            become(chart, HERE, "chat", "Serving")
            token.write_text("new")
            proxy.tokens = {"new": OPERATOR}  # the server does not know the old one any more
            proxy.cut()
            apply(chart, worlds.fleet(HERE, "chat", ("model", "another")))
            become(chart, HERE, "chat", "PodsOfAnotherModel")
    for kind in ("moef", "statefulsets", "pods", "events"):
        chart.kubectl("delete", kind, "--all", "-n", HERE)


def test_the_controllers_old_token_is_refused_and_its_new_one_shown_without_a_restart(
    crds: Cluster, tmp_path: Path
) -> None:
    namespace, theirs, mine = crds.namespace("tokens"), tmp_path / "tokens.yaml", tmp_path / "token"
    worlds.on(crds.kubeconfig, lambda api: worlds.workload(api, namespace, "chat", 2))
    replace(theirs, f"operator: [{OLD}]")
    replace(mine, OLD)
    where = ("--namespace", namespace, "--lease", namespace, "--token", str(mine))
    with (
        real.serving(tmp_path, "--tokens", theirs) as address,
        operating(tmp_path, crds.kubeconfig, address, *where) as running,
    ):
        assert refusal(address, OLD) == ""
        crds.kubectl("apply", "-f", "-", stdin=worlds.fleet(namespace, "chat"))
        become(crds, namespace, "chat", "Pending")  # no worker: its policy is the controller's
        replace(theirs, f"operator: [{NEW}]")
        assert refusal(address, OLD) == "UNAUTHENTICATED"
        crds.kubectl("apply", "-f", "-", stdin=worlds.fleet(namespace, "chat", ("guard", 0.5)))
        until(lambda: "UNAUTHENTICATED" in running.log.read_text(), "the operator is refused, too")
        assert observed(crds, namespace) == 1
        replace(mine, NEW)
        until(lambda: observed(crds, namespace) == 2, "the policy is put with the new token")
        assert running.process.poll() is None


def replace(path: Path, text: str) -> None:
    """At once, as a Secret's volume is."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(path)


def refusal(address: str, token: str) -> str:
    with grpc.insecure_channel(address) as channel:
        shown = (("authorization", f"Bearer {token}"),)
        try:
            FleetServiceStub(channel).Status(fleet_pb2.StatusRequest(), metadata=shown)
        except grpc.RpcError as error:
            return str(error.code().name)
    return ""


def observed(cluster: Cluster, namespace: str) -> int:
    """The generation that the fleet's status is of."""
    return int(cluster.get("moef", "chat", "-n", namespace)["status"]["observedGeneration"])


def apply(cluster: Cluster, fleet: Any) -> None:
    worlds.on(cluster.kubeconfig, lambda api: worlds.apply(api, FLEETS, HERE, fleet))
