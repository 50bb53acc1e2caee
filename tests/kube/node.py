"""A node for an API server that has none: what a controller manager and a kubelet do, as far as
placer's charts need it.

StatefulSets, Deployments and Jobs become pods; those run, are probed, and their statuses written:
so `helm install --wait`, `helm test` and `kubectl wait` return. Pods whose owner is gone go.
"""

import asyncio
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from controller.kube.cluster.api import Api, ApiError
from controller.kube.cluster.informer import Informer, Name
from controller.kube.objects import DEPLOYMENTS, NODES, PODS, STATEFUL_SETS, Kind, Object
from placer.clock import SystemClock
from tests.kube.cluster import Cluster
from tests.kube.node_pods import NODE, Pod, names_in
from tests.kube.node_ways import Way

JOBS, SERVICES = Kind("Job", "jobs", "batch"), Kind("Service", "services")
OWNERS = (STATEFUL_SETS, DEPLOYMENTS, JOBS)
HASH = {STATEFUL_SETS: "controller-revision-hash", DEPLOYMENTS: "pod-template-hash"}
LOOK_S, CLOSING_S = 0.2, 0.25  # the second for TLS connections, as aiohttp's manual has it


class Node:
    """pods: those that run here, by uid"""

    def __init__(self, api: Api, cluster: Cluster, way: Way, folder: Path) -> None:
        self._api, self._cluster, self._way, self._folder = api, cluster, way, folder
        self._numbers, self._addresses = count(2), dict[str, str]()
        self.pods: dict[str, tuple[Pod, asyncio.Task[None]]] = {}
        clock, kinds = SystemClock(), (*OWNERS, PODS, SERVICES)
        self._seen = {
            kind: Informer(api, kind, "", clock, lambda *_: None, lambda found: found)
            for kind in kinds
        }
        config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--minify"))
        self._at = config["clusters"][0]["cluster"]

    async def run(self) -> None:
        with suppress(ApiError):
            ready = {"conditions": [{"type": "Ready", "status": "True"}]}
            await self._api.create(NODES, "", _body(NODES, {"name": NODE}, status=ready))
        async with asyncio.TaskGroup() as tasks:
            for one in self._seen.values():
                tasks.create_task(one.run())
            while not all(one.synced for one in self._seen.values()):
                await asyncio.sleep(LOOK_S)
            try:
                while True:
                    await self._look()
                    await asyncio.sleep(LOOK_S)
            finally:
                for _, task in self.pods.values():
                    task.cancel()
                await asyncio.gather(
                    *(task for _, task in self.pods.values()), return_exceptions=True
                )

    def address(self, service: str, namespace: str) -> str:
        return self._hosts(namespace)[service]

    async def _look(self) -> None:
        """What fails is done at the next one."""
        found = self._seen[PODS].objects
        for kind in OWNERS:
            for owner in list(self._seen[kind].objects.values()):
                mine = [one for one in found.values() if _owner(one) == owner["metadata"]["uid"]]
                with suppress(ApiError):
                    await self._scale(kind, owner, mine)
                    await self._tell(kind, owner, _status(kind, owner, mine))
        owners = {
            one["metadata"]["uid"] for kind in OWNERS for one in self._seen[kind].objects.values()
        }
        for one in list(found.values()):
            by, leaves = _owner(one), "deletionTimestamp" in one["metadata"]
            if by and (by not in owners or leaves):
                await self._delete(one)
            elif by:
                self._run(one)
        here = {one["metadata"]["uid"] for one in found.values()}
        for uid in self.pods.keys() - here:
            await self._end(uid)
        for namespace in {_name(pod.object)[0] for pod, _ in self.pods.values()}:
            self._tell_names(namespace)
        for pod, task in self.pods.values():
            if task.done():
                task.result()  # a fault of the node's own ends it
            known = found.get(_name(pod.object))
            if known is not None:
                with suppress(ApiError):
                    await self._tell(PODS, known, pod.status)

    async def _scale(self, kind: Kind, owner: Object, mine: list[Object]) -> None:
        spec, name = owner["spec"], owner["metadata"]["name"]
        digest = _digest(spec["template"])
        by_name = {one["metadata"]["name"]: one for one in mine}
        if kind is JOBS:
            failed = sum(one["status"].get("phase") == "Failed" for one in mine)
            wanted = [f"{name}-{at}" for at in range(min(failed, spec.get("backoffLimit", 6)) + 1)]
        else:
            stem = name if kind is STATEFUL_SETS else f"{name}-{digest}"
            wanted = [f"{stem}-{at}" for at in range(spec.get("replicas", 1))]
        for one in sorted(by_name.keys() - set(wanted), reverse=True) if kind is not JOBS else ():
            await self._delete(by_name[one])
        for one in wanted:
            pod = by_name.get(one)
            if pod is not None and kind is STATEFUL_SETS and _revision(kind, pod) != digest:
                await self._delete(pod)
            elif pod is None:
                await self._make(kind, owner, one, digest)
            if kind is STATEFUL_SETS and not _is_ready(pod):
                return  # its next pod comes after this one

    async def _make(self, kind: Kind, owner: Object, name: str, digest: str) -> None:
        meta, template = owner["metadata"], owner["spec"]["template"]
        labels = {**template["metadata"].get("labels", {})}
        if kind in HASH:
            labels[HASH[kind]] = digest
        reference = {
            "apiVersion": kind.api_version, "kind": kind.name, "name": meta["name"],
            "uid": meta["uid"], "controller": True,
        }  # fmt: skip
        spec = {**template["spec"], "nodeName": NODE}
        if kind is STATEFUL_SETS:
            spec |= {"hostname": name, "subdomain": owner["spec"].get("serviceName", "")}
        made = {
            "name": name, "namespace": meta["namespace"], "labels": labels,
            "ownerReferences": [reference],
        }  # fmt: skip
        pod = await self._api.create(PODS, meta["namespace"], _body(PODS, made, spec=spec))
        self._seen[PODS].put(pod)

    def _run(self, found: Object) -> None:
        uid = found["metadata"]["uid"]
        if uid in self.pods:
            return
        namespace, name = _name(found)
        address = self._addresses.setdefault(
            f"{namespace}/{name}", f"127.1.0.{next(self._numbers)}"
        )
        pod = Pod(
            self._api, found, address, self._way, self._folder, self._at["server"], self._hosts,
            self._account,
        )  # fmt: skip
        self.pods[uid] = pod, asyncio.create_task(pod.live())

    async def _delete(self, found: Object) -> None:
        await self._end(found["metadata"]["uid"])
        namespace, name = _name(found)
        words = ("delete", "pod", name, "-n", namespace, "--force", "--grace-period=0")
        done = await asyncio.to_thread(self._cluster.run, "kubectl", *words, "--wait=false")
        if done.returncode == 0:
            self._seen[PODS].objects.pop((namespace, name), None)

    async def _end(self, uid: str) -> None:
        if uid in self.pods:
            _, task = self.pods[uid]
            task.cancel()
            await asyncio.wait([task])  # that this one is cancelled meanwhile is not to be missed
            del self.pods[uid]

    async def _tell(self, kind: Kind, found: Object, status: dict[str, Any]) -> None:
        before = found.get("status") or {}
        if any(before.get(key) != value for key, value in status.items()):
            body = {"status": status}
            self._seen[kind].put(await self._api.patch(kind, *_name(found), body, of="status"))

    def _hosts(self, namespace: str) -> dict[str, str]:
        """Addresses of Services and of StatefulSets' pods, by all their names. A Service is the
        first of its pods; empty while it has none."""
        found: dict[str, str] = {}
        for service in self._seen[SERVICES].objects.values():
            (where, name), selector = _name(service), service["spec"].get("selector") or {}
            mine = {
                _name(pod.object)[1]: pod.address
                for pod, _ in self.pods.values()
                if _name(pod.object)[0] == where
                and selector.items() <= pod.object["metadata"].get("labels", {}).items()
            }
            named = {name: next(iter(mine.values()), "")}
            named |= {f"{pod}.{name}": address for pod, address in mine.items()}
            for one, address in named.items():
                found[f"{one}.{where}.svc"] = address
                if where == namespace:
                    found[one] = address
        return found

    def _tell_names(self, namespace: str) -> None:
        """Written where it is, since containers have that file mounted."""
        found = {"localhost": "127.0.0.1", **self._hosts(namespace)}
        text = "".join(f"{address} {name}\n" for name, address in found.items() if address)
        path = names_in(self._folder, namespace)
        path.touch()
        if path.read_text() != text:
            with path.open("r+") as file:
                file.write(text)
                file.truncate()

    def _account(self, namespace: str, name: str) -> Path:
        """What a pod finds of its ServiceAccount, and the same as a kubeconfig."""
        folder = self._folder / "accounts" / f"{namespace}.{name}"
        folder.mkdir(parents=True, exist_ok=True)
        config = self._cluster.account(namespace, name, folder)
        config.rename(folder / "kubeconfig")
        user = yaml.safe_load((folder / "kubeconfig").read_text())["users"][0]["user"]
        (folder / "token").write_text(user["token"])
        (folder / "namespace").write_text(namespace)
        shutil.copy(self._at["certificate-authority"], folder / "ca.crt")
        return folder


def _status(kind: Kind, owner: Object, mine: list[Object]) -> dict[str, Any]:
    meta, spec, count_of = owner["metadata"], owner["spec"], len(mine)
    made, digest = meta["creationTimestamp"], _digest(spec["template"])
    if kind is JOBS:
        phases = [one["status"].get("phase") for one in mine]
        found: dict[str, Any] = {
            "succeeded": phases.count("Succeeded"), "failed": phases.count("Failed"),
            "startTime": made,
        }  # fmt: skip
        word = "Complete" if found["succeeded"] else "Failed"
        if found["succeeded"] or found["failed"] > spec.get("backoffLimit", 6):
            found["conditions"] = [{"type": word, "status": "True", "lastTransitionTime": made}]
        return found
    ready = sum(map(_is_ready, mine))
    updated = sum(_revision(kind, one) == digest for one in mine)
    found = {
        "observedGeneration": meta["generation"], "replicas": count_of, "readyReplicas": ready,
        "availableReplicas": ready, "updatedReplicas": updated,
    }  # fmt: skip
    if kind is STATEFUL_SETS:
        found |= {"currentReplicas": updated, "currentRevision": digest, "updateRevision": digest}
    else:
        is_whole = ready >= spec.get("replicas", 1)
        found["conditions"] = [
            {"type": "Available", "status": str(is_whole), "lastTransitionTime": made},
            {
                "type": "Progressing", "status": "True", "lastTransitionTime": made,
                "reason": "NewReplicaSetAvailable" if is_whole else "ReplicaSetUpdated",
            },
        ]  # fmt: skip
    return found


def _body(kind: Kind, meta: dict[str, Any], **rest: Any) -> Object:
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta, **rest}


def _digest(template: Any) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]


def _name(found: Object) -> Name:
    return found["metadata"]["namespace"], found["metadata"]["name"]


def _owner(pod: Object) -> str:
    """Its uid; empty if nobody here made the pod."""
    is_here = pod["spec"].get("nodeName") == NODE
    found = pod["metadata"].get("ownerReferences", []) if is_here else []
    return next((str(one["uid"]) for one in found if one.get("controller")), "")


def _revision(kind: Kind, pod: Object) -> str:
    return str(pod["metadata"].get("labels", {}).get(HASH[kind], ""))


def _is_ready(pod: Object | None) -> bool:
    told = ((pod or {}).get("status") or {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in told)


@contextmanager
def running(cluster: Cluster, way: Way, folder: Path) -> Iterator[Node]:
    """A node, on a thread of its own."""
    loop = asyncio.new_event_loop()
    with mock.patch.dict("os.environ", KUBECONFIG=str(cluster.kubeconfig)):
        api = loop.run_until_complete(Api.open())
    found = Node(api, cluster, way, folder)
    task = loop.create_task(found.run())

    async def whole() -> None:
        with suppress(asyncio.CancelledError):
            await task
        await api.close()
        await asyncio.sleep(CLOSING_S)

    thread = threading.Thread(target=loop.run_until_complete, args=(whole(),))
    thread.start()
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()
