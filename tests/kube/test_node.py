"""The whole loop: charts installed with --wait, a fleet of the local engine, drift, plans as
objects, approved with kubectl and applied, 2 -> 3 -> 2 ranks, and meanwhile not one request that
fails.

Once as processes, once by podman from the images of deploy/Dockerfile where it can run them.
"""

import json
import ssl
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPSConnection
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tests.kube import node
from tests.kube.cluster import ROOT, Cluster
from tests.kube.conftest import CHART, CRDS
from tests.kube.node_ways import AsProcesses, ByPodman, Way, no_podman
from tests.kube.operators import condition, until

IMAGE = "placer:0.1.0"
MODEL = ROOT / "examples" / "tiny_moe" / "model"
KEY = "a-key-of-a-client-of-the-front"
WAIT_S, CLIENTS, PROMPT, ANSWER = 180.0, 6, 256, 8
STATES = ("desired", "allocated", "available", "engineActive", "traffic")
# Decisions every few seconds, on little traffic: fleets take minutes.
TOPOLOGY = yaml.safe_load((ROOT / "examples" / "tiny_moe" / "cpus.yaml").read_text())
POLICY = {"topology": TOPOLOGY, "window_s": 40.0, "least_tokens": 2000, "cooldown_s": 5.0}
VALUES = {
    "tls": {"secretName": "placer-tls"},
    "controller": {"config": {"every_s": 2.0, "default": POLICY}},
}
ROUTER = {"name": "chat", "kind": "front", "pool": "moe.chat", "keysSecret": "keys", "replicas": 1}
FLEET = {
    "apiVersion": "placer.dev/v1alpha1", "kind": "MoEFleet",
    "metadata": {"name": "chat", "namespace": "moe"},
    "spec": {
        "workload": {"reference": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "chat"}},
        "model": "tiny-moe",
        "redundancy": 4,
        "topology": {"fromNodeLabels": True},  # which say nothing here: the chart's setting holds
        "objective": {"maxMoved": 0.3},
    },
}  # fmt: skip


@pytest.fixture(params=["processes", "podman"])
def way(request: pytest.FixtureRequest) -> Way:
    if request.param == "processes":
        return AsProcesses()
    if why := no_podman(IMAGE):
        pytest.skip(why)
    return ByPodman()


def secret(name: str, **data: str) -> Any:
    meta = {"name": name, "namespace": "moe"}
    coded = {key: b64encode(text.encode()).decode() for key, text in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": coded}


def engine() -> list[Any]:
    """A StatefulSet of which each pod is a rank, and what it mounts."""
    text = (Path(__file__).parent / "node_engine.py").read_text()
    script = {
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"engine.py": text},
        "metadata": {"name": "engine", "namespace": "moe"},
    }  # fmt: skip
    fields = {
        "PLACER_POD_NAME": "metadata.name", "PLACER_POD_UID": "metadata.uid",
        "PLACER_NODE": "spec.nodeName", "POD_IP": "status.podIP",
    }  # fmt: skip
    told = {
        "MODEL": "/model", "PLACER_AGENT": "placer-controller.moe.svc:7077",
        "PLACER_POOL": "moe.chat", "PLACER_ENGINE": "chat",
        "PLACER_API": "http://chat-0.chat.moe.svc:8000",
        "PLACER_TOKEN_FILE": "/etc/placer/token", "PLACER_TLS_CA": "/etc/placer/ca.crt",
    }  # fmt: skip
    env = [
        {"name": key, "valueFrom": {"fieldRef": {"fieldPath": at}}} for key, at in fields.items()
    ]
    sources = [
        {"secret": {"name": "placer-agent", "items": [{"key": "token", "path": "token"}]}},
        {"secret": {"name": "placer-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]
    mounts = {"engine": "/etc/engine", "model": "/model", "placer-access": "/etc/placer"}
    pod = {
        "terminationGracePeriodSeconds": 20,
        "containers": [{
            "name": "engine", "image": IMAGE, "command": ["python", "/etc/engine/engine.py"],
            "env": [*env, *({"name": key, "value": text} for key, text in told.items())],
            "ports": [{"name": "http", "containerPort": 8000}],
            "startupProbe": {
                "httpGet": {"path": "/version", "port": "http"}, "periodSeconds": 1,
                "failureThreshold": 120,
            },
            "readinessProbe": {"httpGet": {"path": "/version", "port": "http"}, "periodSeconds": 1},
            "volumeMounts": [{"name": key, "mountPath": at} for key, at in mounts.items()],
        }],
        "volumes": [
            {"name": "engine", "configMap": {"name": "engine"}},
            {"name": "model", "hostPath": {"path": str(MODEL)}},
            {"name": "placer-access", "projected": {"sources": sources}},
        ],
    }  # fmt: skip
    labels, meta = {"app": "chat"}, {"name": "chat", "namespace": "moe"}
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"clusterIP": "None", "selector": labels, "ports": [{"port": 8000}]},
    }  # fmt: skip
    workload = {
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta,
        "spec": {
            "replicas": 2, "serviceName": "chat", "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }  # fmt: skip
    return [script, service, workload]


class Traffic:
    """Clients of the front, each of which asks one request after another."""

    def __init__(self, front: str, authority: Path) -> None:
        self._front, self._context = front, ssl.create_default_context(cafile=authority)
        self.served, self.failures, self.prompts = 0, list[str](), list[list[int]]()
        self._is_over = False
        self._threads = [threading.Thread(target=self._ask, args=(at,)) for at in range(CLIENTS)]

    def become(self, domain: str) -> None:
        self.prompts = prompts(domain)

    @contextmanager
    def running(self, domain: str) -> Iterator[None]:
        self.become(domain)
        for one in self._threads:
            one.start()
        try:
            yield
        finally:
            self._is_over = True
            for one in self._threads:
                one.join()

    def _ask(self, at: int) -> None:
        for turn in count(at):
            if self._is_over:
                return
            prompt = self.prompts[turn * 7 % len(self.prompts)]
            try:
                self._complete(prompt)
            except Exception as error:
                self.failures.append(repr(error))
            else:
                self.served += 1

    def _complete(self, prompt: list[int]) -> None:
        host, _, port = self._front.partition(":")
        connection = HTTPSConnection(host, int(port), timeout=60, context=self._context)
        body = {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0}
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        connection.close()
        assert answer.status == 200, told
        assert told["usage"]["completion_tokens"] == ANSWER


def prompts(domain: str) -> list[list[int]]:
    """Held-out text of the example's, as byte ids."""
    sys.path.insert(0, str(MODEL.parent))
    try:
        from corpus import split  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    text = b"\n\n".join(split(domain)[1])
    step = (len(text) - PROMPT) // 24
    return [list(text[at * step : at * step + PROMPT]) for at in range(24)]


def wait(cluster: Cluster, what: str, jsonpath: str, value: str) -> None:
    condition = f"--for=jsonpath={jsonpath}={value}"
    cluster.kubectl("-n", "moe", "wait", what, condition, f"--timeout={WAIT_S:.0f}s")


def approved(cluster: Cluster) -> Any:
    """The plan that waits next, approved as docs/kubernetes.md says, once it is applied. Others may
    take its place while nobody approves it."""

    def look() -> Any:
        plans = cluster.get("moefleet", "chat", "-n", "moe")["status"].get("plans", {})
        if not (name := plans.get("proposed")):
            return None
        digest = cluster.get("placementplan", name, "-n", "moe")["spec"]["digest"]
        approval = {"approved": True, "digest": digest, "by": me}
        patch = json.dumps({"spec": {"approval": approval}})
        cluster.kubectl("-n", "moe", "patch", "placementplan", name, "--type=merge", "-p", patch)
        ended = until(partial(_ended, cluster, name), f"{name} ends", WAIT_S)
        return ended if ended["status"]["phase"] == "Applied" else None

    me = "admin" if cluster.tools else cluster.kubectl("auth", "whoami").split()[-1]
    return until(look, "a plan is proposed", WAIT_S)


def _ended(cluster: Cluster, name: str) -> Any:
    plan = cluster.get("placementplan", name, "-n", "moe")
    return plan if plan["status"]["phase"] not in ("Proposed", "Approved", "Applying") else None


def events(cluster: Cluster) -> list[tuple[str, str]]:
    found = cluster.get("events", "-n", "moe")["items"]
    return [(one["reason"], one["message"]) for one in found]


def test_the_whole_loop(cluster: Cluster, way: Way, tmp_path: Path) -> None:
    cluster.namespace("moe")
    authority = trustme.CA()
    names = ["placer-controller.moe.svc", "placer-chat.moe.svc", "localhost"]
    leaf = authority.issue_cert(*names, *(f"127.1.0.{at}" for at in range(2, 30)))
    chain = b"".join(part.bytes() for part in leaf.cert_chain_pems).decode()
    ca = authority.cert_pem.bytes().decode()
    key = leaf.private_key_pem.bytes().decode()
    tls = secret("placer-tls", **{"tls.crt": chain, "tls.key": key, "ca.crt": ca})
    keys = secret("keys", **{"keys.yaml": f"client: [{KEY}]\n"})
    for one in (tls, keys):
        cluster.kubectl("apply", "-f", "-", stdin=one)
    (tmp_path / "ca.crt").write_text(ca)
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps(VALUES))
    release = ("placer", CHART, "-n", "moe", "-f", values, "--wait", "--timeout", "180s")
    with node.running(cluster, way, tmp_path) as here:
        cluster.helm("upgrade", "--install", "placer-crds", CRDS, "-n", "default")
        try:
            cluster.helm("install", *release)
            assert "Succeeded" in cluster.helm("test", "placer", "-n", "moe")
            for one in engine():
                cluster.kubectl("apply", "-f", "-", stdin=one)
            cluster.kubectl("apply", "-f", "-", stdin=FLEET)
            cluster.kubectl(
                "-n", "moe", "wait", "moefleet/chat", "--for=condition=Ready", "--timeout=120s"
            )
            values.write_text(json.dumps({**VALUES, "routers": [ROUTER]}))
            cluster.helm("upgrade", *release)
            traffic = Traffic(f"{here.address('placer-chat', 'moe')}:8080", tmp_path / "ca.crt")
            with traffic.running("code"):
                first = approved(cluster)
                traffic.become("tables")  # whose experts are others
                second = approved(cluster)
                scaled(cluster, 3)
                told_in(cluster, first, second)
                scaled(cluster, 2)
            assert traffic.failures == []
            assert traffic.served > 50
        finally:
            cleared(cluster)


def scaled(cluster: Cluster, ranks: int) -> None:
    """In all five states of its width, with as many pods, none of which was started again."""
    cluster.kubectl("-n", "moe", "scale", "moefleet/chat", f"--replicas={ranks}")
    for state in STATES:
        wait(cluster, "moefleet/chat", f"{{.status.width.{state}}}", str(ranks))

    def look() -> Any:
        fleet = cluster.get("moefleet", "chat", "-n", "moe")
        return fleet if condition(fleet, "Reconciling") == "Idle" else None

    fleet = until(look, "all is over", WAIT_S)
    assert fleet["status"]["width"] == dict.fromkeys(STATES, ranks)
    assert condition(fleet) == "Serving"
    assert condition(fleet, "Stalled") == "None"
    pods = ranks_of(cluster)
    assert [one["metadata"]["name"] for one in pods] == [f"chat-{at}" for at in range(ranks)]
    assert {one["status"]["containerStatuses"][0]["restartCount"] for one in pods} == {0}
    before = 3 if ranks == 2 else 2
    assert any(f"{before} -> {ranks} replicas" in message for _, message in events(cluster))


def ranks_of(cluster: Cluster) -> list[Any]:
    found: list[Any] = cluster.get("pods", "-n", "moe", "-l", "app=chat")["items"]
    return found


def told_in(cluster: Cluster, first: Any, second: Any) -> None:
    """What status and events say of both plans."""
    uids = [one["metadata"]["uid"] for one in ranks_of(cluster)]
    for plan in (first, second):
        acks = plan["status"]["acknowledgements"]
        assert {(one["rank"], one["pod"], one["state"]) for one in acks} == {
            (0, uids[0], "Applied"), (1, uids[1], "Applied"),
        }  # fmt: skip
    assert second["spec"]["epoch"] > first["spec"]["epoch"]
    told = events(cluster)
    reasons = [reason for reason, _ in told]
    print("events:", *(f"  {reason}: {message}" for reason, message in told), sep="\n")
    assert reasons.count("PlanApplied") >= 2


def cleared(cluster: Cluster) -> None:
    """For the next way: nothing collects garbage on every server."""
    for what in ("moefleet/chat", "statefulset/chat", "service/chat", "configmap/engine"):
        cluster.run("kubectl", "-n", "moe", "delete", what, "--ignore-not-found")
    cluster.run("helm", "uninstall", "placer", "-n", "moe")
    for what in ("placementplans", "pvc", "events"):
        cluster.run("kubectl", "-n", "moe", "delete", what, "--all")
