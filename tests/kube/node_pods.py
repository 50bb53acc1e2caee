"""One pod on the test node, as a kubelet has it: volumes, its container, restarts and probes."""

import asyncio
import base64
import os
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from controller.kube.cluster.api import Api, ApiError
from controller.kube.objects import Kind, Object
from tests.kube.node_ways import Wanted, Way

NODE = "test-node"
LOOK_S, BACKOFF_S = 0.1, (1.0, 10.0)
SECRETS, CONFIG_MAPS = Kind("Secret", "secrets"), Kind("ConfigMap", "configmaps")
CLAIMS = Kind("PersistentVolumeClaim", "persistentvolumeclaims")
FIELDS = {
    "metadata.name": ("metadata", "name"), "metadata.namespace": ("metadata", "namespace"),
    "metadata.uid": ("metadata", "uid"), "spec.nodeName": ("spec", "nodeName"),
    "status.podIP": ("status", "podIP"),
}  # fmt: skip


def names_in(folder: Path, namespace: str) -> Path:
    """What its pods find in /etc/hosts, as long as they run."""
    return folder / f"{namespace}.hosts"


class Pod:
    """
    hosts:   addresses by name, as they are when a container starts
    account: a ServiceAccount's folder
    """

    def __init__(
        self, api: Api, found: Object, address: str, way: Way, folder: Path, server: str,
        hosts: Callable[[str], dict[str, str]], account: Callable[[str, str], Path],
    ) -> None:  # fmt: skip
        [self._container] = found["spec"]["containers"]
        assert "initContainers" not in found["spec"], "no init container is run here"
        self.object = {**found, "status": {"podIP": address}}
        self.address, self._way, self._api, self._server = address, way, api, server
        self._folder, self._hosts, self._account = folder, hosts, account
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted: Wanted | None = None
        self._restarts, self._is_ready, self._trouble = 0, False, ""
        self._ended: int | None = None  # its exit code, if it is not started again

    @property
    def log(self) -> Path:
        meta = self.object["metadata"]
        return self._folder / f"{meta['namespace']}.{meta['name']}.log"

    async def live(self) -> None:
        """Until its container has ended for good, or it is cancelled."""
        policy = self.object["spec"].get("restartPolicy", "Always")
        backoff_s, longest_s = BACKOFF_S
        try:
            while True:
                await self._start()
                assert self._process is not None
                probes = asyncio.create_task(self._probe())
                while self._process.poll() is None:
                    await asyncio.sleep(LOOK_S)
                probes.cancel()
                self._is_ready, code = False, self._process.returncode
                if policy == "Never" or (policy == "OnFailure" and code == 0):
                    self._ended = code
                    return
                self._restarts += 1
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, longest_s)
        finally:
            if self._process is not None and self._process.poll() is None:
                assert self._wanted is not None
                grace_s = self.object["spec"].get("terminationGracePeriodSeconds", 30)
                probes.cancel()
                await asyncio.to_thread(self._way.stop, self._wanted, self._process, grace_s)

    @property
    def status(self) -> dict[str, Any]:
        """As the API server should have it."""
        made = self.object["metadata"]["creationTimestamp"]
        phase = {None: "Running", 0: "Succeeded"}.get(self._ended, "Failed")
        state: dict[str, Any] = {"running": {"startedAt": made}}
        if self._ended is not None:
            state = {"terminated": {"exitCode": self._ended}}
        elif self._process is None:
            phase = "Pending"
            state = {"waiting": {"reason": "ContainerCreating", "message": self._trouble}}
        told = {
            "PodScheduled": True, "Initialized": True, "ContainersReady": self._is_ready,
            "Ready": self._is_ready,
        }  # fmt: skip
        return {
            "phase": phase, "podIP": self.address, "hostIP": "127.0.0.1", "startTime": made,
            "conditions": [
                {"type": name, "status": str(true), "lastTransitionTime": made}
                for name, true in told.items()
            ],
            "containerStatuses": [{
                "name": self._container["name"], "image": self._container["image"], "imageID": "",
                "ready": self._is_ready, "restartCount": self._restarts, "state": state,
                "started": self._process is not None,
            }],
        }  # fmt: skip

    async def _start(self) -> None:
        """Once all that it mounts is there, and whom it names has an address."""
        while True:
            try:
                self._wanted = await self._described()
                self._trouble = ", ".join(self._wanted.nowhere)
            except ApiError as error:
                self._trouble = str(error)
            if not self._trouble:
                break
            await asyncio.sleep(10 * LOOK_S)
        assert self._wanted is not None
        self._process = await asyncio.to_thread(self._way.start, self._wanted)

    async def _described(self) -> Wanted:
        meta, spec = self.object["metadata"], self.object["spec"]
        folders = {one["name"]: await self._volume(one) for one in spec.get("volumes", [])}
        mounts = {
            one["mountPath"]: (folders[one["name"]], not one.get("readOnly", False))
            for one in self._container.get("volumeMounts", [])
        }  # fmt: skip
        account = None
        if spec.get("automountServiceAccountToken", True) and "serviceAccountName" in spec:
            account = self._account(meta["namespace"], spec["serviceAccountName"])
        env: dict[str, str] = {}
        for one in self._container.get("env", []):
            text = one["value"] if "value" in one else self._field(one["valueFrom"])
            for name, known in env.items():
                text = text.replace(f"$({name})", known)
            env[one["name"]] = text
        return Wanted(
            f"{meta['namespace']}-{meta['name']}", self._container, self.object, env, mounts,
            self._hosts(meta["namespace"]), names_in(self._folder, meta["namespace"]), self._server,
            account, self.log,
        )  # fmt: skip

    def _field(self, source: Any) -> str:
        part, name = FIELDS[source["fieldRef"]["fieldPath"]]
        return str(self.object[part][name])

    async def _volume(self, volume: Any) -> Path:
        meta = self.object["metadata"]
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        folder = self._folder / str(meta["uid"]) / volume["name"]
        if "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
            folder = self._folder / "claims" / meta["namespace"] / name
            bound = {"status": {"phase": "Bound"}}
            await self._api.patch(CLAIMS, meta["namespace"], name, bound, of="status")
        folder.mkdir(parents=True, exist_ok=True)
        group = self.object["spec"].get("securityContext", {}).get("fsGroup", -1)
        sources = volume.get("projected", {}).get("sources", [volume])
        mode = next(
            (one["defaultMode"] for one in volume.values() if "defaultMode" in one),
            0o644,
        ) | (0o440 if group >= 0 else 0)
        for path, blob in [one for source in sources async for one in self._files(source)]:
            (folder / path).unlink(missing_ok=True)
            (folder / path).write_bytes(blob)
            (folder / path).chmod(mode)
            os.chown(folder / path, -1, group)
        folder.chmod(0o2775)
        os.chown(folder, -1, group)
        return folder

    async def _files(self, source: Any) -> Any:
        """Paths and contents of what a Secret or ConfigMap has."""
        for kind, word, named in (
            (SECRETS, "secret", "secretName"),
            (CONFIG_MAPS, "configMap", ""),
        ):
            if word not in source:
                continue
            of = source[word]
            name = of.get(named) or of["name"]
            data = (await self._api.get(kind, self.object["metadata"]["namespace"], name))["data"]
            items = of.get("items") or [{"key": key, "path": key} for key in data]
            for one in items:
                text = data[one["key"]]
                blob = base64.b64decode(text) if kind is SECRETS else text.encode()
                yield one["path"], blob

    async def _probe(self) -> None:
        """Startup first, then readiness and liveness side by side."""
        probes = {name: self._container.get(f"{name}Probe") for name in ("startup", "liveness")}
        if (startup := probes["startup"]) and not await self._within(startup):
            self._kill()
            return
        ready = self._container.get("readinessProbe")
        await asyncio.gather(
            self._each(ready, self._become) if ready else self._become(True),
            self._each(probes["liveness"], self._live_on) if probes["liveness"] else _nothing(),
        )

    async def _within(self, probe: Any) -> bool:
        for _ in range(probe.get("failureThreshold", 3)):
            if await self._passes(probe):
                return True
            await asyncio.sleep(probe.get("periodSeconds", 10))
        return False

    async def _each(self, probe: Any, tell: Callable[[bool], Awaitable[None]]) -> None:
        failures, most = 0, probe.get("failureThreshold", 3)
        while True:
            passes = await self._passes(probe)
            failures = 0 if passes else failures + 1
            if passes or failures >= most:
                await tell(passes)
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _become(self, is_ready: bool) -> None:
        self._is_ready = is_ready

    async def _live_on(self, is_alive: bool) -> None:
        if not is_alive:
            self._kill()

    def _kill(self) -> None:
        """It is started again."""
        if self._process is not None:
            self._process.terminate()

    async def _passes(self, probe: Any) -> bool:
        at = probe.get("httpGet") or probe["tcpSocket"]
        port = next(self._ports(at["port"]), at["port"])
        limit_s = probe.get("timeoutSeconds", 1)
        with suppress(OSError, TimeoutError, aiohttp.ClientError, ssl.SSLError):
            async with asyncio.timeout(limit_s):
                if "tcpSocket" in probe:
                    _, writer = await asyncio.open_connection(self.address, port)
                    writer.close()
                    return True
                url = f"{at.get('scheme', 'HTTP').lower()}://{self.address}:{port}{at['path']}"
                async with aiohttp.ClientSession() as one, one.get(url, ssl=False) as answer:
                    return 200 <= answer.status < 400
        return False

    def _ports(self, name: Any) -> Iterator[int]:
        for one in self._container.get("ports", []):
            if one.get("name") == name:
                yield one["containerPort"]


async def _nothing() -> None:
    return
