"""What the chart's pods run, run as processes: its commands, settings, tokens and certificate fit
together."""

import base64
import json
import os
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import trustme

from tests.kube.cluster import ROOT
from tests.kube.envtest import free_port
from tests.kube.rendered import Objects, container, one, pod

ROUTER = {"name": "chat", "kind": "front", "pool": "p", "keysSecret": "keys"}
PLACER = [str(ROOT / ".venv/bin/python"), "-m", "placer.cli.main"]
Template = Callable[..., Objects]


class Pods:
    """The pods of a release on this host: volumes are folders, services are ports."""

    def __init__(self, objects: Objects, folder: Path) -> None:
        self.objects, self.folder = objects, folder
        self.ports: dict[str, int] = {}
        authority = trustme.CA()
        names = one(objects, "Certificate", "placer-tls")["spec"]["dnsNames"]
        leaf = authority.issue_cert(*names, "localhost", "127.0.0.1")
        self.authority = folder / "ca.crt"
        authority.cert_pem.write_to_path(self.authority)
        chain = b"".join(part.bytes() for part in leaf.cert_chain_pems)
        key, cert = leaf.private_key_pem.bytes(), authority.cert_pem.bytes()
        self.secrets = {
            "placer-tls": {"tls.crt": chain, "tls.key": key, "ca.crt": cert},
            "keys": {"keys.yaml": b"client: [aaaaaaaaaaaaaaaaaaaaaaaa]\n"},
        }
        for each in (each for each in objects if each["kind"] == "Secret"):
            data = {name: base64.b64decode(text) for name, text in each["data"].items()}
            self.secrets[each["metadata"]["name"]] = data

    def command(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Words and variables of a pod's only container, on this host."""
        root, spec = self.folder / name, container(self.objects, name)
        volumes = {each["name"]: each for each in pod(self.objects, name)["volumes"]}
        for mount in spec["volumeMounts"]:
            self._mount(volumes[mount["name"]], root / mount["mountPath"].lstrip("/"))
        env = {each["name"]: each["value"] for each in spec["env"] if "value" in each}
        del env["NUMBA_CACHE_DIR"]  # the kernels of this checkout are compiled already
        words = [self._here(text, root) for text in [*spec["command"][1:], *spec["args"]]]
        return words, {key: self._here(text, root) for key, text in env.items()}

    def _mount(self, volume: Any, at: Path) -> None:
        at.mkdir(parents=True)
        files: dict[str, bytes] = {}
        if "secret" in volume:
            files = self.secrets[volume["secret"]["secretName"]]
            if "items" in volume["secret"]:
                files = {each["path"]: files[each["key"]] for each in volume["secret"]["items"]}
        elif "configMap" in volume:
            data = one(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
            files = {key: text.encode() for key, text in data.items()}
        for key, blob in files.items():
            (at / key).write_bytes(blob)
            (at / key).chmod(0o440)

    def _here(self, text: str, root: Path) -> str:
        text = re.sub(r"(?<![\w.])/(?=(etc|var|tmp)\b)", f"{root}/", text)
        at = re.search(r"(?:0\.0\.0\.0|[\w-]+\.moe\.svc):(\d+)$", text)
        if at is None:
            return text
        own = at[1] if at[1] == "7077" else f"{root.name}/{at[1]}"
        port = self.ports.setdefault(own, free_port())
        return text.replace(at[0], f"{'0.0.0.0' if '0.0.0.0' in at[0] else 'localhost'}:{port}")

    @contextmanager
    def running(self, name: str, ready: str) -> Iterator[None]:
        """Once it said that it is ready; it ends well when it is told to."""
        words, env = self.command(name)
        process = subprocess.Popen(
            [*PLACER, *words], env=os.environ | env, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if ready in line:
                break
        assert ready in said, said
        try:
            yield
        finally:
            process.terminate()
            process.communicate()
        assert process.returncode == 0


@pytest.fixture
def pods(template: Template, tmp_path: Path) -> Pods:
    config = {"every_s": 5, "pools": {"p": {"mode": "automatic"}}}
    return Pods(template({"controller": {"config": config}, "routers": [ROUTER]}), tmp_path)


def test_the_controller_answers_the_charts_own_test(pods: Pods) -> None:
    with pods.running("placer-controller", "attach engines"):
        words, env = pods.command("placer-test")
        done = subprocess.run(
            [*PLACER, *words], env=os.environ | env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["pools"] == []
        with urlopen(f"http://localhost:{pods.ports['placer-controller/9090']}/metrics") as metrics:
            assert b"placer_conditions 0" in metrics.read()
        stolen = Path(env["PLACER_TOKEN_FILE"])
        stolen.chmod(0o600)
        stolen.write_bytes(pods.secrets["placer-agent"]["token"])
        done = subprocess.run(
            [*PLACER, *words], env=os.environ | env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2  # an agent's token does not open it


def test_a_front_is_alive_and_not_ready_without_engines(pods: Pods) -> None:
    with (
        pods.running("placer-controller", "attach engines"),
        pods.running("placer-chat", "the front listens"),
    ):
        probe = container(pods.objects, "placer-chat")["readinessProbe"]["httpGet"]
        url = f"https://localhost:{pods.ports['placer-chat/8080']}{probe['path']}"
        trusting = ssl.create_default_context(cafile=pods.authority)
        with pytest.raises(HTTPError) as refused:
            urlopen(url, context=trusting)
        with refused.value as answer:
            assert answer.code == 503
