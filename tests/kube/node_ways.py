"""How a pod's container is run: by podman from its image, or as a plain process of this checkout.

Neither has a network of its own: each pod listens on a loopback address that is its podIP.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.kube.cluster import ROOT

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
PROGRAMS = {
    "placer": [sys.executable, "-m", "placer.cli.main"], "python": [sys.executable],
}  # fmt: skip
# Processes of this checkout have its compiled kernels, and no folder of the image's.
IMAGES_OWN = ("NUMBA_CACHE_DIR",)


@dataclass(frozen=True)
class Wanted:
    """A container that is to run.

    mounts: folder on this host and whether it may be written to, by path in the container
    hosts:  names of Services and pods, and their addresses; in names also those to come
    account: folder with token, ca.crt, namespace and kubeconfig; None: it has no ServiceAccount
    """

    name: str
    container: Any
    pod: Any
    env: Mapping[str, str]
    mounts: Mapping[str, tuple[Path, bool]]
    hosts: Mapping[str, str]
    names: Path
    server: str
    account: Path | None
    log: Path

    @property
    def words(self) -> list[str]:
        """Of its command; what it listens on is its pod's address."""
        given = [*self.container["command"], *self.container.get("args", [])]
        found = [re.sub(r"\$\((\w+)\)", lambda m: self.env.get(m[1], m[0]), one) for one in given]
        return [one.replace("0.0.0.0", self.pod["status"]["podIP"]) for one in found]

    @property
    def nowhere(self) -> list[str]:
        """Names that it is told of, and that have no address yet."""
        told = [*self.words, *self.env.values()]
        unknown = [name for name, address in self.hosts.items() if not address]
        return [name for name in unknown if any(f"{name}:" in one for one in told)]


class Way(Protocol):
    def start(self, wanted: Wanted) -> subprocess.Popen[bytes]:
        """Its container, as a process that ends when it does, with its exit code."""

    def stop(self, wanted: Wanted, process: subprocess.Popen[bytes], grace_s: float) -> None:
        """Until it has ended."""


class AsProcesses:
    """Paths of mounts and names of Services are replaced in words and variables. What images and
    security contexts are for is not tried."""

    def start(self, wanted: Wanted) -> subprocess.Popen[bytes]:
        program, *rest = (self._here(one, wanted) for one in wanted.words)
        env = {key: self._here(text, wanted) for key, text in wanted.env.items()}
        env = os.environ | {"PYTHONPATH": str(ROOT)} | env
        for name in ("KUBECONFIG", *IMAGES_OWN):
            env.pop(name, None)
        if wanted.account is not None:
            env["KUBECONFIG"] = str(wanted.account / "kubeconfig")
            env["PLACER_NAMESPACE"] = wanted.pod["metadata"]["namespace"]
        with wanted.log.open("ab") as log:
            return subprocess.Popen(
                [*PROGRAMS.get(program, [program]), *rest], env=env, stdout=log, stderr=log,
                cwd=wanted.log.parent, start_new_session=True,
            )  # fmt: skip

    def stop(self, wanted: Wanted, process: subprocess.Popen[bytes], grace_s: float) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _here(self, text: str, wanted: Wanted) -> str:
        folders = {path: str(folder) for path, (folder, _) in wanted.mounts.items()}
        text = re.sub(rf"(?<![\w.-]){_any(wanted.hosts)}(?=:\d)", _of(wanted.hosts), text)
        return re.sub(rf"(?<![\w./-]){_any(folders)}(?![\w.-])", _of(folders), text)


def _any(words: Iterable[str]) -> str:
    """A pattern of the longest that fits, of nothing if there is none."""
    return f"({'|'.join(map(re.escape, sorted(words, key=len, reverse=True))) or '(?!)'})"


def _of(known: Mapping[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda found: known[found[1]]


class ByPodman:
    """With mounts, names, user, read-only root and limits as the pod's spec has them."""

    def start(self, wanted: Wanted) -> subprocess.Popen[bytes]:
        subprocess.run([*PODMAN, "rm", "--force", "--ignore", wanted.name], capture_output=True)
        program, *rest = wanted.words
        words = [*_run(), "--name", wanted.name, "--entrypoint", program, *self._secured(wanted)]
        env = dict(wanted.env)
        mounts = dict(wanted.mounts)
        if wanted.account is not None:
            host, port = wanted.server.removeprefix("https://").split(":")
            env |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
            mounts[ACCOUNT] = wanted.account, False
        for path, (folder, writable) in mounts.items():
            words += ["--volume", f"{folder}:{path}:{'rw' if writable else 'ro'}"]
        words += ["--no-hosts", "--volume", f"{wanted.names}:/etc/hosts:ro"]
        for name, text in env.items():
            words += ["--env", f"{name}={text}"]
        with wanted.log.open("ab") as log:
            return subprocess.Popen(
                [*words, _local(wanted.container["image"]), *rest], stdout=log, stderr=log
            )

    def stop(self, wanted: Wanted, process: subprocess.Popen[bytes], grace_s: float) -> None:
        words = [*PODMAN, "stop", "--ignore", "--time", f"{grace_s:.0f}", wanted.name]
        subprocess.run(words, capture_output=True, check=False)
        process.wait()

    def _secured(self, wanted: Wanted) -> list[str]:
        pod = wanted.pod["spec"].get("securityContext", {})
        own = wanted.container.get("securityContext", {})
        words = []
        if "runAsUser" in pod:
            words += ["--user", f"{pod['runAsUser']}:{pod.get('fsGroup', 0)}"]
        if own.get("readOnlyRootFilesystem"):
            words += ["--read-only", "--read-only-tmpfs=false"]
        if not own.get("allowPrivilegeEscalation", True):
            words += ["--security-opt", "no-new-privileges"]
        words += [f"--cap-drop={one}" for one in own.get("capabilities", {}).get("drop", [])]
        limit = wanted.container.get("resources", {}).get("limits", {}).get("memory")
        return [*words, *(["--memory", limit.removesuffix("i").lower()] if limit else [])]


PODMAN = ["podman", "--cgroup-manager", "cgroupfs"]
PODMAN += ["--runtime", "runc"] if shutil.which("runc") else []


def _run() -> list[str]:
    """Limits are given, since not everybody may raise them to podman's own."""
    files = ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
    return [*PODMAN, "run", "--rm", "--network", "host", *files]


def _local(image: str) -> str:
    return image if "/" in image else f"localhost/{image}"


def no_podman(image: str) -> str:
    """Why containers of it cannot be run by podman; empty if they can."""
    if shutil.which("podman") is None:
        return "no podman: install it"
    tried = [*_run(), "--entrypoint", "true", "--pull", "never", _local(image)]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    why = " ".join(done.stderr.split())[-300:]
    return f"podman cannot run {image}: {why}" if done.returncode else ""
