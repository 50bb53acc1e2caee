"""The whole way with a real `placer serve`: counts in, a plan as an object, approved with kubectl,
told to the ranks, applied; and a width that these engines cannot have."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from placer.v1 import fleet_pb2, placement_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub
from tests.kube import worlds
from tests.kube.cluster import ROOT, Cluster
from tests.kube.operators import approve, become, operating, plan_in, until

MODEL, LAYERS, EXPERTS = "tiny", 2, 4
CONFIG = """\
every_s: 0.5
default: {least_tokens: 1000, confirmations: 1, cooldown_s: 0}
"""
SHAPE = (
    '{"name": "tiny", "layers": 2, "experts": 4, "top_k": 1, "hidden": 4096,'
    ' "moe_intermediate": 14336}'
)
HOT = np.array([500, 500, 100, 100] * LAYERS, "<u4")  # of rank 0's two experts most


@contextmanager
def serving(folder: Path, *options: str | Path) -> Iterator[str]:
    """A controller's address."""
    (folder / "config.yaml").write_text(CONFIG)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "placer.cli.main", "serve", "--host", "process",
            "--listen", "127.0.0.1:0", "--ledger", str(folder / "placer.db"),
            "--config", str(folder / "config.yaml"), *map(str, options),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if "listens on" in line)
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


class Rank:
    """A worker in a pod: it counts, and applies what it hears of."""

    def __init__(self, channel: Any, pool: str, rank: int, uid: str) -> None:
        self._fleet, self._placement = FleetServiceStub(channel), PlacementServiceStub(channel)
        self._profile = ProfileServiceStub(channel)
        self._id = profile_pb2.WorkerId(
            pool=pool, engine="engine-1", worker=f"worker-{rank}", incarnation=1
        )
        self._worker = fleet_pb2.Worker(
            name=f"worker-{rank}", model=MODEL, layers=LAYERS, experts=EXPERTS, top_k=1, slots=4,
            ep_rank=rank, ep_size=2, can_apply=True, records=True,
        )  # fmt: skip
        self._pod, self._epoch, self._digest, self._pushes = uid, 0, "", 0

    def register(self) -> None:
        self._fleet.Register(fleet_pb2.RegisterRequest(
            id=self._id, worker=self._worker, shape=SHAPE, epoch=self._epoch, digest=self._digest,
            pod_name=f"chat-{self._worker.ep_rank}", pod_uid=self._pod, node="node-1",
        ))  # fmt: skip

    def push(self) -> None:
        self._pushes += 1
        counts = profile_pb2.Counts(
            phase=profile_pb2.PHASE_DECODE, layers=LAYERS, experts=EXPERTS, top_k=1, tokens=1200,
            sequences=1, load=HOT.tobytes(),
        )  # fmt: skip
        steps = profile_pb2.Steps(phase=profile_pb2.PHASE_DECODE, count=300, seconds=12)
        push = profile_pb2.PushRequest(
            id=self._id, sequence=self._pushes, counts=[counts], window_s=30, steps=[steps]
        )
        list(self._profile.Push(iter([push])))

    def apply(self, epoch: int, digest: str) -> None:
        self._epoch, self._digest = epoch, digest
        self.register()

    def offered(self) -> Iterator[Any]:
        request = placement_pb2.WatchRequest(pool=self._id.pool, engine="engine-1")
        return iter(self._placement.Watch(request))


@contextmanager
def working(address: str, pool: str, uids: list[str]) -> Iterator[list[Rank]]:
    with grpc.insecure_channel(address) as channel:
        ranks = [Rank(channel, pool, rank, uid) for rank, uid in enumerate(uids)]
        for rank in ranks:
            rank.register()
        offers = ranks[0].offered()

        def listen() -> None:
            from placer.files.plans import parse_plan

            try:
                for offer in offers:
                    plan = parse_plan(offer.file.decode(), "the offer")
                    for rank in ranks:
                        rank.apply(offer.epoch, plan.placement.digest)
            except grpc.RpcError:
                return  # the test is over

        thread = threading.Thread(target=listen)
        thread.start()
        ranks[0].push()
        yield ranks
        offers.cancel()  # type: ignore[attr-defined]
        thread.join()


def test_from_counts_to_a_plan_that_is_applied(crds: Cluster, tmp_path: Path) -> None:
    namespace = crds.namespace("whole")
    uids = worlds.on(crds.kubeconfig, lambda api: worlds.workload(api, namespace, "chat", 2))
    made = worlds.fleet(
        namespace, "chat", ("model", MODEL), ("objective", {"maxMoved": 1.0}),
    )  # fmt: skip
    crds.kubectl("apply", "-f", "-", stdin=made)
    options = ("--namespace", namespace, "--lease", namespace)
    with (
        serving(tmp_path) as address,
        operating(tmp_path, crds.kubeconfig, address, *options),
        working(address, f"{namespace}.chat", uids),
    ):
        become(crds, namespace, "chat", "Serving")
        plan = plan_in(crds, namespace, "Proposed")
        assert plan["spec"]["score"]["gain"] > 0.3
        assert plan["spec"]["moves"]["experts"] == 4
        approve(crds, plan)
        applied = plan_in(crds, namespace, "Applied")

        def status() -> Any:
            return crds.get("moef", "chat", "-n", namespace)["status"]

        until(lambda: status()["plans"].get("applied") == plan["metadata"]["name"], "it is told")
        crds.kubectl("scale", "moef/chat", "--replicas=3", "-n", namespace)
        become(crds, namespace, "chat", "WidthNotLive", "Stalled")
        assert "engine-1 cannot change its width" in status()["liveWidth"]["reason"]
        assert crds.get("statefulset", "chat", "-n", namespace)["spec"]["replicas"] == 2
    told = applied["status"]["acknowledgements"]
    assert {(one["rank"], one["pod"], one["state"]) for one in told} <= {
        (rank, uid, state) for rank, uid in enumerate(uids) for state in ("Applied", "Waiting")
    }
