"""A Kubernetes API server for tests: a real cluster, envtest's binaries, or the rig.

In this order: PLACER_TEST_KUBECONFIG (any cluster), KUBEBUILDER_ASSETS (a folder with etcd and
kube-apiserver), the rig in PLACER_TEST_KUBE, ../shared/kube beside the repository unless it is set.
"""

import base64
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import yaml

from tests.kube import envtest

ROOT = Path(__file__).parents[2]
RIG = Path(os.environ.get("PLACER_TEST_KUBE", ROOT.parent / "shared" / "kube")) / "rig"
NONE = (
    "no API server: set PLACER_TEST_KUBECONFIG to a cluster's, KUBEBUILDER_ASSETS to a folder with"
    f" etcd and kube-apiserver, or put the rig at {RIG}"
)
# ServiceAccounts that tests speak as; a server without a controller manager knows them by tokens.
ACCOUNTS = (
    "placer-system/placer-operator", "moe/placer-operator", "people/alice", "people/bob",
)  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """An API server and the tools that speak with it.

    tools:  folder of kubectl and helm; what is not there is taken from PATH
    tokens: of ServiceAccounts, by namespace/name; of others the server is asked for one
    """

    kubeconfig: Path
    tools: Path | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)

    def tool(self, name: str) -> str:
        own = self.tools / name if self.tools else None
        return str(own) if own and own.exists() else name

    def has(self, name: str) -> bool:
        return shutil.which(self.tool(name)) is not None

    def run(
        self, tool: str, *arguments: str | Path, stdin: Any = None, user: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """stdin: text, or an object that goes as JSON; user: another's kubeconfig"""
        text = stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin)
        return subprocess.run(
            [self.tool(tool), *map(str, arguments)],
            input=text,
            env=os.environ | {"KUBECONFIG": str(user or self.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )

    def kubectl(self, *arguments: str | Path, stdin: Any = None, user: Path | None = None) -> str:
        return _done(self.run("kubectl", *arguments, stdin=stdin, user=user))

    def helm(self, *arguments: str | Path) -> str:
        return _done(self.run("helm", *arguments))

    def refused(self, *arguments: str | Path, stdin: Any = None, user: Path | None = None) -> str:
        """What the server says to it."""
        done = self.run("kubectl", *arguments, stdin=stdin, user=user)
        assert done.returncode, f"not refused: {done.stdout}"
        return done.stderr

    def patch(self, path: str, body: Any, user: Path) -> str:
        """A JSON patch and nothing before it, as kubectl would ask; what the server says, or ""."""
        config = yaml.safe_load(user.read_text())
        server, token = config["clusters"][0]["cluster"], config["users"][0]["user"]["token"]
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json-patch+json",
        }
        asked = Request(server["server"] + path, json.dumps(body).encode(), headers, method="PATCH")
        authority = server.get("certificate-authority-data")
        context = ssl.create_default_context(
            cafile=server.get("certificate-authority"),
            cadata=base64.b64decode(authority).decode() if authority else None,
        )
        try:
            urlopen(asked, context=context).close()
        except HTTPError as error:
            with error:
                return str(json.loads(error.read())["message"])
        return ""

    def get(self, *arguments: str) -> Any:
        """An answer that broke off is asked for again, as kubectl says: the server was paused."""
        done = self.run("kubectl", "get", *arguments, "-o", "json")
        while done.returncode and "Please retry" in done.stderr:
            done = self.run("kubectl", "get", *arguments, "-o", "json")
        return json.loads(_done(done))

    def namespace(self, name: str) -> str:
        labels = {"kubernetes.io/metadata.name": name}  # which a real server sets by itself
        made = {"apiVersion": "v1", "kind": "Namespace"}
        self.kubectl(
            "apply", "-f", "-", stdin=made | {"metadata": {"name": name, "labels": labels}}
        )
        return name

    def account(self, namespace: str, name: str, folder: Path) -> Path:
        """A kubeconfig in which one speaks as that ServiceAccount."""
        token = self.tokens.get(f"{namespace}/{name}")
        if token is None:
            token = self.kubectl("create", "token", "-n", namespace, name).strip()
        config = yaml.safe_load(self.kubectl("config", "view", "--raw", "--minify", "-o", "yaml"))
        config["users"] = [{"name": name, "user": {"token": token}}]
        config["contexts"][0]["context"] |= {"user": name, "namespace": namespace}
        path = folder / f"{namespace}.{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path

    def until(self, true: Any, what: str, within_s: float = 20.0) -> None:
        """Waits for what the server does a moment later, as with rights and policies."""
        end = time.monotonic() + within_s
        while not true():
            assert time.monotonic() < end, f"not within {within_s:g} s: {what}"
            time.sleep(0.1)


def _done(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{' '.join(done.args)}: {done.stderr or done.stdout}"
    return done.stdout


@contextmanager
def found(folder: Path) -> Iterator[Cluster | None]:
    """None, if there is neither."""
    if given := os.environ.get("PLACER_TEST_KUBECONFIG"):
        yield Cluster(Path(given))
    elif assets := os.environ.get("KUBEBUILDER_ASSETS"):
        with envtest.started(Path(assets), folder, ACCOUNTS) as (kubeconfig, tokens):
            yield Cluster(kubeconfig, Path(assets), tokens)
    elif RIG.exists():
        accounts = {"RIG_SERVICE_ACCOUNTS": " ".join(ACCOUNTS)}
        told = subprocess.run(
            ["bash", str(RIG), "up", str(folder)],
            env=os.environ | accounts,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        lines = dict(line.split("=", 1) for line in told.split())
        tokens = {name: f"tok-{name.replace('/', '-')}" for name in ACCOUNTS}
        try:
            yield Cluster(Path(lines["KUBECONFIG"]), Path(lines["KUBE_BIN"]), tokens)
        finally:
            subprocess.run(["bash", str(RIG), "down", str(folder)], check=True)
    else:
        yield None
