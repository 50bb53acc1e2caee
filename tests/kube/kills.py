"""kill -9 of an operator at boundaries: before or after a write or a call, whose answer it never
hears. Each of many fleets has a plan approved, its width made 3 and 2 again, meanwhile."""

import random
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.kube import worlds
from tests.kube.cluster import Cluster
from tests.kube.operators import Kept, approve, until
from tests.kube.proxy import Asked, Proxy, between, kubeconfig
from tests.kube.stand_in import StandIn, serving

CHANCE = 0.5  # of a kill at a boundary of which there was one already
WRITES = (
    "POST events", "PATCH moefleets/status", "POST placementplans", "PATCH placementplans/status",
    "PATCH statefulsets",
)  # fmt: skip
CALLS = ("PutPolicy", "ReportCapacity", "Approve", "ScaleTo")
BOUNDARIES = {f"{when} {what}" for when in ("before", "after") for what in (*WRITES, *CALLS)}
LONG_S = 900.0


class Killer:
    """The first time at each kind of boundary, then by lot, as often at each: what comes last, such
    as scalings, has its share too."""

    def __init__(self, seed: int, kills: int) -> None:
        self._lots, self._left = random.Random(seed), kills
        self._each, self._over = divmod(kills, len(BOUNDARIES))
        self.kills: Counter[str] = Counter()
        self.kept: Kept | None = None

    def pass_by(self, where: str) -> bool:
        """Whether it killed."""
        if self.kept is None or not self._left:
            return False
        is_over = where not in BOUNDARIES or self.kills[where] >= self._each
        if is_over and not self._over:
            return False
        if self.kills[where] and self._lots.random() >= CHANCE:
            return False
        self._over -= is_over
        self._left -= 1
        self.kills[where] += 1
        self.kept.kill()
        return True

    def listen(self, proxy: Proxy, stand_in: StandIn) -> None:
        def before(asked: Asked) -> tuple[int, dict[str, str]] | None:
            if asked.is_write and self.pass_by(f"before {kind_of(asked)}"):
                return 503, {}  # it never left
            return None

        def after(asked: Asked, status: int) -> None:
            if asked.is_write:
                self.pass_by(f"after {kind_of(asked)}")

        proxy.before, proxy.after, stand_in.boundary = before, after, self.pass_by


@dataclass
class Told:
    """
    kills:    by boundary
    engine:   how often engines were asked for each thing
    replicas: that each workload was given, one after the other, by fleet
    """

    kills: Counter[str]
    engine: Counter[str]
    replicas: dict[str, list[int]] = field(default_factory=dict)


def kind_of(asked: Asked) -> str:
    """PATCH moefleets/status"""
    parts = asked.path.split("/namespaces/")[1].split("/")[1:]
    return f"{asked.method} {parts[0]}" + (f"/{parts[2]}" if len(parts) > 2 else "")


def killed(cluster: Cluster, folder: Path, namespace: str, fleets: int, kills: int) -> Told:
    cluster.namespace(namespace)
    names = [f"fleet-{number}" for number in range(fleets)]
    killer, stand_in = Killer(seed=kills, kills=kills), StandIn()
    for name in names:
        worlds.on(
            cluster.kubeconfig,
            partial(worlds.served, stand_in=stand_in, namespace=namespace, name=name),
        )
    with between(cluster) as proxy, serving(stand_in) as address:
        killer.listen(proxy, stand_in)
        options = ("--namespace", namespace, "--lease", namespace)
        with Kept(folder, kubeconfig(proxy, folder), address, *options) as killer.kept:
            _tell(cluster, stand_in, namespace, names)
        written = proxy.writes
    replicas: dict[str, list[int]] = {name: [] for name in names}
    for asked, status in written:
        found = re.search(r"/statefulsets/([^/]+)$", asked.path)
        if found and status == 200:
            replicas[found[1]].append(int(asked.body.rpartition(b":")[2].strip(b" }]")))
    return Told(killer.kills, stand_in.engine, replicas)


def _tell(cluster: Cluster, stand_in: StandIn, namespace: str, names: list[str]) -> None:
    def fleets() -> list[Any]:
        found: list[Any] = cluster.get("moef", "-n", namespace)["items"]
        return found

    def widths() -> list[dict[str, int]]:
        return [one.get("status", {}).get("width", {}) for one in fleets()]

    def scale(ranks: int) -> None:
        cluster.kubectl("scale", "moef", "--all", f"--replicas={ranks}", "-n", namespace)

    def replicas(wanted: int) -> bool:
        found = cluster.get("statefulsets", "-n", namespace)["items"]
        return all(one["spec"]["replicas"] == wanted for one in found)

    worlds.on(cluster.kubeconfig, lambda api: worlds.make(api, namespace, names))
    for name in names:
        stand_in.propose(f"{namespace}.{name}")
    for name in names:
        approve(cluster, _plan_of(cluster, namespace, name))
    until(lambda: all(one.get("status", {}).get("plans", {}).get("applied") for one in fleets()),
          "all plans are applied", LONG_S)  # fmt: skip
    scale(3)
    until(lambda: replicas(3), "all have three pods", LONG_S)
    for name in names:
        worlds.on(
            cluster.kubeconfig,
            partial(worlds.ready, namespace=namespace, name=f"{name}-2", app=name),
        )
    until(lambda: all(one.get("engineActive") == 3 for one in widths()), "three ranks", LONG_S)
    scale(2)
    until(lambda: replicas(2), "the pods are released", LONG_S)
    cluster.kubectl("delete", "pods", *(f"{name}-2" for name in names), "-n", namespace)
    until(lambda: all(one.get("available") == 2 for one in widths()), "all is told", LONG_S)


def _plan_of(cluster: Cluster, namespace: str, fleet: str) -> Any:
    def look() -> Any:
        plans = cluster.get("mplan", "-n", namespace)["items"]
        return next((one for one in plans if one["spec"]["fleet"] == fleet), None)

    return until(look, f"{fleet} has a plan", LONG_S)
