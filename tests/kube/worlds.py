"""Fleets with workloads and pods on an API server that runs none: what a kubelet and the workloads'
controllers would say is said by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from controller.kube.cluster.api import Api, ApiError
from controller.kube.objects import FLEETS, NODES, PODS, STATEFUL_SETS, Kind
from tests.kube import objects
from tests.kube.stand_in import StandIn

T = TypeVar("T")
READY = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
MODEL = "deepseek-ai/DeepSeek-V3"
AT_ONCE = 40  # requests


def on(kubeconfig: Path, work: Callable[[Api], Awaitable[T]]) -> T:
    """What it returns, with that cluster's API."""

    async def whole() -> T:
        with mock.patch.dict("os.environ", KUBECONFIG=str(kubeconfig)):
            api = await Api.open()
        try:
            return await work(api)
        finally:
            await api.close()

    return asyncio.run(whole())


async def apply(api: Api, kind: Kind, namespace: str, body: Any) -> Any:
    body = {"apiVersion": kind.api_version, "kind": kind.name, **body}
    try:
        return await api.create(kind, namespace, body)
    except ApiError as error:
        if error.status != 409:
            raise
        return await api.patch(kind, namespace, body["metadata"]["name"], body)


def pod(name: str, app: str, node: str = "node-1") -> Any:
    return {
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "engine", "image": "engine"}]},
    }


async def ready(api: Api, namespace: str, name: str, app: str) -> str:
    """A pod that is ready, and its uid."""
    made = await apply(api, PODS, namespace, pod(name, app))
    await api.patch(PODS, namespace, name, READY, of="status")
    return str(made["metadata"]["uid"])


async def workload(api: Api, namespace: str, name: str, replicas: int) -> list[str]:
    """A StatefulSet whose pods are ready, and their uids."""
    labels = {"app": name}
    await apply(api, STATEFUL_SETS, namespace, {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "serviceName": name, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "engine", "image": "engine"}]},
            },
        },
    })  # fmt: skip
    return [await ready(api, namespace, f"{name}-{rank}", name) for rank in range(replicas)]


async def served(api: Api, stand_in: StandIn, namespace: str, name: str, ranks: int = 2) -> None:
    """A workload whose engine the controller knows."""
    uids = await workload(api, namespace, name, ranks)
    stand_in.pool(f"{namespace}.{name}", MODEL, uids)


def fleet(namespace: str, name: str, *changes: Any) -> Any:
    named = ("workload.reference.name", name)
    return objects.fleet([named, *changes], name, namespace)


async def many(api: Api, stand_in: StandIn, namespace: str, count: int) -> list[str]:
    """So many fleets' workloads, at once; their names."""
    names, gate = [f"fleet-{number}" for number in range(count)], asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with gate:
            await served(api, stand_in, namespace, name)

    node = {"metadata": {"name": "node-1", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100"}}}
    await apply(api, NODES, "", node)
    await asyncio.gather(*map(one, names))
    return names


async def make(api: Api, namespace: str, names: list[str]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> None:
        async with gate:
            await api.create(FLEETS, namespace, fleet(namespace, name))

    await asyncio.gather(*map(one, names))
