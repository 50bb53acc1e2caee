"""The operator as the chart's ServiceAccount: with its rights all goes well, and without any one of
them something does not."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.kube.objects import FLEETS
from tests.kube import worlds
from tests.kube.cluster import Cluster
from tests.kube.conftest import CHART
from tests.kube.operators import Running, approve, become, operating, plan_in, until
from tests.kube.proxy import Asked, Proxy, between, kubeconfig
from tests.kube.stand_in import StandIn, serving

HERE, LEASE = "placer-system", "placer-operator"
TOKEN = "tok-placer-system-placer-operator"
RULES = yaml.safe_load((CHART / "files/operator-rules.yaml").read_text())
ROLES = {
    "fleets": ("role", LEASE),
    "own": ("role", f"{LEASE}-lease"),
    "cluster": ("clusterrole", f"{HERE}-placer-operator"),
}
EACH = [(scope, rule["name"]) for scope, rules in RULES.items() for rule in rules]


@dataclass
class Here:
    """forbidden: requests that the server answered with 403"""

    cluster: Cluster
    proxy: Proxy
    stand_in: StandIn
    start: Callable[[], Any]
    forbidden: list[Asked] = field(default_factory=list)


@pytest.fixture
def here(chart: Cluster, tmp_path: Path) -> Iterator[Here]:
    if f"{HERE}/{LEASE}" not in chart.tokens:
        pytest.skip("this server's ServiceAccounts have no tokens that a test knows")
    stand_in = StandIn()
    with between(chart) as proxy, serving(stand_in) as address:
        config = kubeconfig(proxy, tmp_path, TOKEN)
        options = ("--namespace", HERE, "--lease", LEASE)
        found = Here(chart, proxy, stand_in, lambda: operating(tmp_path, config, address, *options))

        def after(asked: Asked, status: int) -> None:
            if status == 403:
                found.forbidden.append(asked)

        proxy.after = after
        worlds.on(chart.kubeconfig, lambda api: worlds.served(api, stand_in, HERE, "chat"))
        yield found
    for kind in ("moef", "mplan", "lease", "statefulsets", "pods", "events"):
        chart.kubectl("delete", kind, "--all", "-n", HERE)


def want_everything(here: Here) -> None:
    """A fleet, of which a plan waits, and which is to have another rank."""
    made = worlds.fleet(HERE, "chat", ("width", {"ranks": 3}))
    worlds.on(here.cluster.kubeconfig, lambda api: worlds.apply(api, FLEETS, HERE, made))
    here.stand_in.propose(f"{HERE}.chat")


def test_the_charts_rights_are_enough(here: Here) -> None:
    with here.start():
        want_everything(here)
        become(here.cluster, HERE, "chat", "Serving")
        approve(here.cluster, plan_in(here.cluster, HERE, "Proposed"), by="admin")
        plan_in(here.cluster, HERE, "Applied")
        worlds.on(here.cluster.kubeconfig, lambda api: worlds.ready(api, HERE, "chat-2", "chat"))
        until(lambda: here.stand_in.engine["scale op-1 to 3"], "it has another rank")
    assert here.forbidden == []


@pytest.mark.parametrize(("scope", "rule"), EACH, ids=[rule for _, rule in EACH])
def test_none_of_them_is_too_much(here: Here, scope: str, rule: str) -> None:
    kind, name = ROLES[scope]
    where = [kind, name, *(["-n", HERE] if kind == "role" else [])]
    role = here.cluster.get(*where)
    [index] = [at for at, one in enumerate(RULES[scope]) if one["name"] == rule]
    removed = role["rules"][index]
    rest = [one for one in role["rules"] if one is not removed]
    _put(here.cluster, where, rest)
    try:
        with here.start() as running:
            want_everything(here)
            until(lambda: _fails(here, running, removed), f"without {rule} something fails")
    finally:
        _put(here.cluster, where, role["rules"])


def _fails(here: Here, running: Running, removed: Any) -> bool:
    """What that right was for is refused; and where it was for seeing, the operator does nothing
    else and says that it is not ready."""
    wanted = {resource for one in removed["resources"] for resource in [one.partition("/")[0]]}
    refused = [one for one in here.forbidden if wanted & set(one.path.split("/"))]
    only_sees = "list" in removed["verbs"]
    return bool(refused) and not (only_sees and running.is_ready)


def _put(cluster: Cluster, where: list[str], rules: Any) -> None:
    cluster.kubectl("patch", *where, "--type=merge", "-p", json.dumps({"rules": rules}))
