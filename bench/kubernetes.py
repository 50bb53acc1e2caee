"""The operator on a real API server: counts and times of what it must reach.

    PARTS=crowd,kills,compaction,pair,install,absence KILLS=200 ROUNDS=5 python -m bench kubernetes

The controller is one of nothing, so that times are the operator's and the server's.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from bench.timing import console
from controller.kube.cluster.api import Api
from controller.kube.objects import FLEETS
from tests.kube import compaction as forgetting
from tests.kube import worlds
from tests.kube.cluster import NONE, ROOT, Cluster, found
from tests.kube.faults import FAULTS
from tests.kube.kills import killed
from tests.kube.operators import WITHIN_S, Kept, Running, become, condition, operating, until
from tests.kube.proxy import Asked, Proxy, between, kubeconfig
from tests.kube.stand_in import StandIn, serving

FLEET_COUNT, CHANGES = int(os.environ.get("FLEETS", "200")), int(os.environ.get("CHANGES", "200"))
IDLE_S, IDLE_KILLS = float(os.environ.get("IDLE_S", "300")), int(os.environ.get("IDLE_KILLS", "30"))
KILLS = int(os.environ.get("KILLS", "200"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))  # of a fault, a failover and an installation
MB, LOOK_S = 2**20, 0.05
INTO = "placer-system"  # where tests' servers know the operator's ServiceAccount


def run() -> None:
    wanted = os.environ.get("PARTS", ",".join(PARTS)).split(",")
    asked = [name for name in PARTS if name in wanted]  # the last one takes the kinds away
    with TemporaryDirectory() as folder, found(Path(folder)) as cluster:
        if cluster is None:
            console.print(f"skipped: {NONE}")
            return
        cluster.helm(
            "upgrade", "--install", "placer-crds", ROOT / "helm/placer-crds", "-n", "default"
        )
        cluster.kubectl("wait", "--for=condition=Established", "crd/moefleets.placer.dev")
        for name in asked:
            table = Table("what", "found", "wanted", title=name)
            for row in PARTS[name](cluster, Path(folder)):
                table.add_row(*row)
            console.print(table)


@dataclass
class Crowd:
    cluster: Cluster
    proxy: Proxy
    namespace: str
    names: list[str]
    start: Callable[..., Any]

    def fleets(self) -> list[Any]:
        items: list[Any] = self.cluster.get("moef", "-n", self.namespace)["items"]
        return items

    @property
    def are_ready(self) -> bool:
        return all(condition(one) == "Serving" for one in self.fleets())

    @property
    def writes(self) -> int:
        return len(self.proxy.writes)

    def settled(self) -> int:
        """Writes so far, once there was none for two seconds."""
        seen = -1
        while seen != (seen := self.writes):
            time.sleep(2.0)
        return seen


@contextmanager
def crowd_of(cluster: Cluster, folder: Path, namespace: str, count: int) -> Iterator[Crowd]:
    cluster.namespace(namespace)
    stand_in = StandIn()
    names = worlds.on(cluster.kubeconfig, lambda api: worlds.many(api, stand_in, namespace, count))
    with between(cluster) as proxy, serving(stand_in) as address:
        config = kubeconfig(proxy, folder)
        where = ("--namespace", namespace, "--lease", namespace)
        yield Crowd(
            cluster, proxy, namespace, names,
            lambda **options: operating(folder, config, address, *where, **options),
        )  # fmt: skip


def crowd(cluster: Cluster, folder: Path) -> Iterator[tuple[str, str, str]]:
    with crowd_of(cluster, folder, "crowd", FLEET_COUNT) as many:
        with many.start() as running:
            until(lambda: running.is_active, "it is active")
            begun = time.monotonic()
            worlds.on(cluster.kubeconfig, lambda api: worlds.make(api, many.namespace, many.names))
            made_s = time.monotonic() - begun
            until(lambda: many.are_ready, "all are ready", 120)
            ready_s = time.monotonic() - begun
            written = many.settled()
            yield (
                f"{FLEET_COUNT} new fleets, all Ready",
                f"{ready_s:.1f} s ({made_s:.1f} s of it to make them)",
                "-",
            )
            yield "writes a new fleet", f"{written / FLEET_COUNT:.2f}", "2 at most"
            cpu = _cpu_s(running)
            time.sleep(IDLE_S)
            yield f"writes in {IDLE_S:g} s at rest", str(many.writes - written), "0"
            yield "processor at rest", f"{(_cpu_s(running) - cpu) / IDLE_S:.1%}", "-"
            times = worlds.on(cluster.kubeconfig, lambda api: _changed(api, many))
            yield (
                f"from change to settled, {CHANGES} changes",
                f"median {median(times):.3f} s, p99 {quantiles(times, n=100)[98]:.3f} s, "
                f"most {max(times):.3f} s",
                "p99 below 0.5 s",
            )
            yield "memory", f"{running.resident_bytes / MB:.0f} MB", "below 120 MB"
            for name, fault in FAULTS.items():
                times = []
                for _ in range(ROUNDS):
                    with fault(many.proxy):
                        times += worlds.on(cluster.kubeconfig, lambda api: _changed(api, many, 1))
                    time.sleep(1.0)
                yield f"settled after {name}", f"most {max(times):.2f} s of {ROUNDS}", "below 3 s"
            yield "memory after that", f"{running.resident_bytes / MB:.0f} MB", "below 120 MB"
            many.settled()
        written = many.writes
        for _ in range(IDLE_KILLS):
            with many.start() as running:
                until(partial(_has_looked, running), "it has looked at all")
                running.kill()
        yield f"writes of {IDLE_KILLS} starts and kill -9", str(many.writes - written), "0"


async def _changed(api: Api, many: Crowd, changes: int = CHANGES) -> list[float]:
    """Seconds from a fleet's change to the status that is of it, one change after the other."""
    seen: dict[str, int] = {}
    news = asyncio.Event()

    async def watch() -> None:
        async for event in api.watch(FLEETS, many.namespace, version):
            one = event["object"]
            if "status" in one:
                seen[one["metadata"]["name"]] = one["status"].get("observedGeneration", 0)
                news.set()

    pages = [page async for page in api.list_pages(FLEETS, many.namespace)]
    version = pages[0]["metadata"]["resourceVersion"]
    watching, times = asyncio.create_task(watch()), []
    for number in range(changes):
        name = many.names[number % len(many.names)]
        now = await api.get(FLEETS, many.namespace, name)
        guard = 0.25 if now["spec"].get("guard") != 0.25 else 0.5
        begun = time.monotonic()
        body = {"spec": {"guard": guard}}
        changed = await api.patch(FLEETS, many.namespace, name, body)
        while seen.get(name, 0) < changed["metadata"]["generation"]:
            news.clear()
            await asyncio.wait_for(news.wait(), 30)
        times.append(time.monotonic() - begun)
    watching.cancel()
    return times


def kills(cluster: Cluster, folder: Path) -> Iterator[tuple[str, str, str]]:
    fleets = max(KILLS // 5, 1)
    told = killed(cluster, folder, "kills", fleets, KILLS)
    twice = sum(count > 1 for count in told.engine.values())
    again = sum(found != [3, 2] for found in told.replicas.values())
    yield "kill -9 at boundaries", str(sum(told.kills.values())), str(KILLS)
    yield "what engines did", f"{len(told.engine)} changes of {fleets} fleets", str(3 * fleets)
    yield "changes that engines did twice", str(twice), "0"
    yield "workloads given a number twice, or another", str(again), "0"
    for where, count in sorted(told.kills.items()):
        yield f"  {where}", str(count), "-"


def compaction(cluster: Cluster, folder: Path) -> Iterator[tuple[str, str, str]]:
    """410s of the server's own, where its processes are ours to stop."""
    if not forgetting.is_possible(cluster):
        yield "settled after etcd forgot", "skipped: the server is not the rig's", "-"
        return
    with crowd_of(cluster, folder, "compaction", 3) as few, few.start() as running:
        until(lambda: running.is_active, "it is active")
        worlds.on(cluster.kubeconfig, lambda api: worlds.make(api, few.namespace, few.names))
        until(lambda: few.are_ready, "all are ready")
        few.settled()
        asked: list[Asked] = []
        running.process.send_signal(signal.SIGSTOP)
        guarded = partial(worlds.on, cluster.kubeconfig, lambda api: _guarded(api, few))
        forgetting.compacted(cluster, guarded)
        few.proxy.before = asked.append
        begun = time.monotonic()
        running.process.send_signal(signal.SIGCONT)
        until(lambda: not any(map(_lags, few.fleets())), "all are settled")
        took_s = time.monotonic() - begun
    lists = {one.path for one in asked if one.method == "GET" and not one.is_watch}
    told = f"{took_s:.2f} s, {len(lists)} kinds listed anew"
    yield "settled after the server restarted and etcd forgot", told, "below 3 s"


async def _guarded(api: Api, few: Crowd) -> None:
    for name in few.names:
        await api.patch(FLEETS, few.namespace, name, {"spec": {"guard": 0.75}})


def _lags(fleet: Any) -> bool:
    return bool(fleet["status"]["observedGeneration"] != fleet["metadata"]["generation"])


def pair(cluster: Cluster, folder: Path) -> Iterator[tuple[str, str, str]]:
    for name in ("SIGKILL", "SIGSTOP", "SIGTERM"):
        times = []
        for turn in range(ROUNDS):
            where = f"pair-{name.lower()}-{turn}"
            with (
                crowd_of(cluster, folder, where, 1) as one,
                one.start(name=f"{where}-a") as first, one.start(name=f"{where}-b") as second,
            ):  # fmt: skip
                until(lambda: first.is_active != second.is_active, "one is active")
                active, other = (first, second) if first.is_active else (second, first)
                until(partial(getattr, other, "is_ready"), "the other is ready")
                begun = time.monotonic()
                active.process.send_signal(getattr(signal, name))
                worlds.on(
                    cluster.kubeconfig, lambda api: worlds.make(api, one.namespace, one.names)
                )
                become(cluster, where, one.names[0], "Serving")
                times.append(time.monotonic() - begun)
                written = one.settled()
                active.process.send_signal(signal.SIGCONT)
                one.settled()
                assert one.writes == written, "the one that was paused wrote something"
        yield f"failover after {name}", f"most {max(times):.1f} s of {ROUNDS}", "below 20 s"
    yield "writes of one that was paused and wakes", "0", "0"


def install(cluster: Cluster, folder: Path) -> Iterator[tuple[str, str, str]]:
    """With the operator as a process, which starts as its pod would, once the chart is there, and
    again if it ends."""
    whole, charts, starts, chart, stand_in = [], [], 0, ROOT / "helm/placer", StandIn()
    cluster.namespace(INTO)
    worlds.on(cluster.kubeconfig, lambda api: worlds.served(api, stand_in, INTO, "chat"))
    user = cluster.account(INTO, "placer-operator", folder)
    for _ in range(ROUNDS):
        begun = time.monotonic()
        options = ("-n", INTO, "--set", "tls.secretName=placer-tls")
        cluster.helm("install", "placer", chart, *options)
        charts.append(time.monotonic() - begun)
        where = ("--namespace", INTO, "--lease", "placer-operator")
        with serving(stand_in) as address, Kept(folder, user, address, *where) as kept:
            worlds.on(cluster.kubeconfig, _made_and_ready)
            whole.append(time.monotonic() - begun)
        starts += kept.starts
        cluster.kubectl("delete", "moef", "chat", "-n", INTO)
        cluster.helm("uninstall", "placer", "-n", INTO)
    told = f"median {median(whole):.1f} s, most {max(whole):.1f} s of {ROUNDS}"
    yield "helm install to a Ready fleet", told, "below 10 s"
    yield "  of it helm's", f"median {median(charts):.1f} s", "-"
    yield "  starts of the operator", str(starts), str(ROUNDS)
    if starts > ROUNDS:
        console.print((folder / "operator-0.log").read_text())


async def _made_and_ready(api: Api) -> None:
    """Asked from here: kubectl, again and again, takes more of the processor than the operator."""
    await worlds.make(api, INTO, ["chat"])
    async with asyncio.timeout(WITHIN_S):
        while condition(await api.get(FLEETS, INTO, "chat")) != "Serving":
            await asyncio.sleep(LOOK_S)


def absence(cluster: Cluster, folder: Path) -> Iterator[tuple[str, str, str]]:
    with crowd_of(cluster, folder, "absence", 3) as few:
        with few.start():
            worlds.on(cluster.kubeconfig, lambda api: worlds.make(api, few.namespace, few.names))
            until(lambda: few.are_ready, "all are ready")
        begun = time.monotonic()
        cluster.kubectl("delete", "moef", few.names[0], "-n", few.namespace)
        yield "a fleet deleted, operator down", f"{time.monotonic() - begun:.2f} s", "below 5 s"
        begun = time.monotonic()
        cluster.kubectl("delete", "crd", "moefleets.placer.dev", "placementplans.placer.dev")
        yield "the kinds deleted, operator down", f"{time.monotonic() - begun:.2f} s", "below 5 s"


def _has_looked(running: Running) -> bool:
    return running.metric("placer_operator_reconciles_total") >= FLEET_COUNT


def _cpu_s(running: Running) -> float:
    fields = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


PARTS = {
    "crowd": crowd, "kills": kills, "compaction": compaction, "pair": pair, "install": install,
    "absence": absence,
}  # fmt: skip
