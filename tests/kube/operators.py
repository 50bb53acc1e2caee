"""`placer operator` as a process, and what tests ask of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kube.cluster import ROOT, Cluster

WITHIN_S = 120.0  # others may be at work on the same machine


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def is_ready(self) -> bool:
        return self.get("readyz") is not None

    @property
    def is_active(self) -> bool:
        return "placer_operator_active 1.0" in (self.get("metrics") or "")

    def get(self, what: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{what}") as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return None

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        lines = (self.get("metrics") or "").splitlines()
        found = [
            one.rpartition(" ")[2] for one in lines if one.partition("{")[0].split()[0] == name
        ]
        return sum(map(float, found))

    @property
    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


@contextmanager
def operating(
    folder: Path, kubeconfig: Path, controller: str, *options: str, name: str = "operator-0"
) -> Iterator[Running]:
    """name: of its pod; a process that is started again as the same takes its Lease at once"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "placer.cli.main", "operator", "--controller", controller,
                "--metrics", str(port), *options,
            ],
            env=os.environ | {
                "KUBECONFIG": str(kubeconfig), "PLACER_POD_NAME": name, "PYTHONPATH": str(ROOT),
            },
            stdout=out, stderr=out,
        )  # fmt: skip
    running = Running(process, port, log)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


class Kept:
    """An operator that is started again whenever it dies, as a kubelet does."""

    def __init__(self, *how: Any) -> None:
        self._how, self._ends = how, False
        self._running: Running | None = None
        self.starts = 0
        self._thread = threading.Thread(target=self._keep)

    def __enter__(self) -> "Kept":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        if self._running is not None:
            self._running.process.terminate()
        self._thread.join()

    def kill(self) -> None:
        assert self._running is not None
        self._running.kill()

    def _keep(self) -> None:
        while not self._ends:
            with operating(*self._how) as self._running:
                self.starts += 1
                self._running.process.wait()


def until(true: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """What it returns once that is true of it."""
    end = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)
    return found


def condition(fleet: Any, of: str = "Ready") -> str:
    """Its reason."""
    found = fleet.get("status", {}).get("conditions", [])
    return next((one["reason"] for one in found if one["type"] == of), "")


def become(
    cluster: Cluster, namespace: str, name: str, reason: str, of: str = "Ready",
    within_s: float = WITHIN_S,
) -> Any:  # fmt: skip
    """The fleet, once its condition has that reason."""

    def look() -> Any:
        found = cluster.get("moef", name, "-n", namespace)
        return found if condition(found, of) == reason else None

    return until(look, f"{of} of {name} is {reason}", within_s)


def plan_in(cluster: Cluster, namespace: str, phase: str, fleet: str = "") -> Any:
    """A PlacementPlan, once one is in that phase."""

    def look() -> Any:
        for one in cluster.get("mplan", "-n", namespace)["items"]:
            if one.get("status", {}).get("phase") == phase and fleet in ("", one["spec"]["fleet"]):
                return one
        return None

    return until(look, f"a plan of {namespace} is {phase}")


def approve(cluster: Cluster, plan: Any, by: str = "alice", user: Path | None = None) -> None:
    """As docs/kubernetes.md says."""
    approval = {"approved": True, "digest": plan["spec"]["digest"], "by": by}
    where = ("-n", plan["metadata"]["namespace"], "mplan", plan["metadata"]["name"])
    patch = json.dumps({"spec": {"approval": approval}})
    cluster.kubectl("patch", *where, "--type=merge", "-p", patch, user=user)
