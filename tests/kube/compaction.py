"""A genuine 410: the API server starts again, and etcd has forgotten what watches were at."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

from tests.kube.cluster import Cluster


def is_possible(cluster: Cluster) -> bool:
    """Whether this is a server whose processes are ours to stop: the rig's."""
    return _pid_file(cluster).exists()


def compacted(cluster: Cluster, change: Callable[[], object]) -> None:
    """change: of objects; it makes revisions that a watch of before has not seen. A server that
    keeps running knows them by heart, so it starts again twice."""
    words = _restarted(cluster)
    change()
    etcd = words[words.index("-etcd") + 1]
    found = _asked(f"{etcd}/v3/kv/range", {"key": "AA=="})
    revision = found["header"]["revision"]
    _asked(f"{etcd}/v3/kv/compaction", {"revision": revision, "physical": True})
    _restarted(cluster)


def _restarted(cluster: Cluster) -> list[str]:
    """Its command."""
    file = _pid_file(cluster)
    pid = int(file.read_text())
    words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    os.kill(pid, signal.SIGKILL)
    with (file.parent / "apiserver.log").open("ab") as log:
        process = subprocess.Popen(
            words, cwd=file.parent, stdout=log, stderr=log, start_new_session=True
        )
    file.write_text(str(process.pid))
    cluster.until(
        lambda: cluster.run("kubectl", "get", "--raw", "/readyz").returncode == 0,
        "the API server is ready again",
        30.0,
    )
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return words


def _pid_file(cluster: Cluster) -> Path:
    return cluster.kubeconfig.parent / "apiserver.pid"


def _asked(url: str, body: object) -> dict[str, dict[str, str]]:
    with urlopen(Request(url, json.dumps(body).encode(), method="POST"), timeout=10) as answer:
        return dict(json.load(answer))
