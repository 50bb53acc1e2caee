"""A token of the API server's that is replaced while the operator runs."""

from pathlib import Path
from typing import Any

import yaml

from controller.kube.objects import FLEETS
from tests.kube import worlds
from tests.kube.cluster import Cluster
from tests.kube.operators import become, operating
from tests.kube.proxy import between
from tests.kube.stand_in import StandIn, serving

HERE = "placer-system"
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


def apply(cluster: Cluster, fleet: Any) -> None:
    worlds.on(cluster.kubeconfig, lambda api: worlds.apply(api, FLEETS, HERE, fleet))
