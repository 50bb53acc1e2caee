"""The cluster's API: one request, its answer or an ApiError. Objects are dicts, as in JSON."""

import json
import logging
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from yaml import YAMLError

from controller.kube.objects import Kind, Object
from placer.errors import PlacerError

PAGE = 100  # objects of a list; pods have 10 KB, and all of a page are in memory at once
WATCH_S = 240  # after which a server ends a watch
SILENCE_S = 90.0  # a watch without even a bookmark is taken for dropped
ANSWER_S = 20.0
PATCHES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
}
GONE = 410
# What the client raises for a file that is no kubeconfig.
NO_CONFIG = (AttributeError, KeyError, TypeError, ValueError)

log = logging.getLogger("placer.kube")


class ApiError(PlacerError):
    """What the API server refused. status: HTTP's, 0: no answer; retry_after_s: as it asks"""

    def __init__(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class ClusterError(PlacerError):
    """No cluster can be reached with the settings that there are."""


class Api:
    """Kubernetes' API server, by kubeconfig or as a pod. Who we are is read again when it says that
    it does not know us: tokens and certificates are replaced while this runs."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    async def open(cls) -> "Api":
        return cls(await _client())

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._ask("GET", kind.path(namespace, name))

    async def list_pages(self, kind: Kind, namespace: str) -> AsyncIterator[Object]:
        """Lists, one after the other, that together are all there was at one moment."""
        more = ""
        while True:
            query = {"limit": str(PAGE), **({"continue": more} if more else {})}
            page = await self._ask("GET", kind.path(namespace), query)
            yield page
            more = page["metadata"].get("continue", "")
            if not more:
                return

    async def watch(self, kind: Kind, namespace: str, version: str) -> AsyncIterator[Object]:
        """Events since a resourceVersion, bookmarks too, until the server ends it."""
        query = {
            "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
        }  # fmt: skip
        limits = aiohttp.ClientTimeout(sock_connect=ANSWER_S, sock_read=SILENCE_S)
        response = await self._send("GET", kind.path(namespace), query, None, "", limits)
        try:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    told = event["object"]
                    raise ApiError(told.get("code", 500), told.get("message", "the watch failed"))
                yield event
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(0, f"the watch of {kind.plural} broke off: {error!r}") from error
        finally:
            response.close()

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        return await self._ask("POST", kind.path(namespace), body=body)

    async def replace(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        """Refused with 409 if somebody changed it since the body's resourceVersion."""
        return await self._ask("PUT", kind.path(namespace, name), body=body)

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Any, how: str = "merge", of: str = ""
    ) -> Object:
        """how: "merge" or "json"; of: a subresource"""
        path = kind.path(namespace, name, of)
        return await self._ask("PATCH", path, body=body, content=PATCHES[how])

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> Object:
        body = {"preconditions": {"uid": uid}}
        return await self._ask("DELETE", kind.path(namespace, name), body=body)

    async def _ask(
        self, method: str, path: str, query: Mapping[str, str] | None = None,
        body: Any = None, content: str = "application/json",
    ) -> Any:  # fmt: skip
        limits = aiohttp.ClientTimeout(total=ANSWER_S)
        response = await self._send(method, path, query or {}, body, content, limits)
        try:
            return json.loads(await response.read())
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(0, f"the answer to {method} {path} broke off: {error!r}") from error

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        response = await self._once(method, path, query, body, content, limits)
        if response.status == 401:
            response.release()
            await self._renew()
            response = await self._once(method, path, query, body, content, limits)
        if response.status < 400:
            return response
        try:
            told = (await response.read()).decode(errors="replace")
        except (TimeoutError, aiohttp.ClientError, OSError):
            told = ""
        message = " ".join(_message(told).split())[:1000]
        after = response.headers.get("Retry-After", "")
        wait_s = float(after) if after.isdigit() else 0.0
        raise ApiError(response.status, f"{method} {path}: {message}", wait_s)

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        client, headers = self._client, {"Accept": "application/json"}
        if content:
            headers["Content-Type"] = content
        url = client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            answer = await client.call_api(method, url, headers, body, _request_timeout=limits)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ApiError(0, f"no answer to {method} {url}: {error!r}") from error
        return answer.response

    async def _renew(self) -> None:
        """Others' requests under way end with the old connections, and are made again."""
        log.warning("placer: the API server refuses our token: reading it again")
        old, self._client = self._client, await _client()
        await old.close()  # type: ignore[no-untyped-call]


async def _client() -> ApiClient:
    """KUBECONFIG, else ~/.kube/config, else the pod's ServiceAccount."""
    settings = Configuration()
    load: Any = config.load_kube_config
    in_cluster: Any = config.load_incluster_config
    paths = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    try:
        if os.environ.get("KUBECONFIG") or os.path.exists(paths):
            await load(config_file=paths, client_configuration=settings)
        else:
            in_cluster(client_configuration=settings)
        return ApiClient(settings)
    except (config.ConfigException, OSError, YAMLError, *NO_CONFIG) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(
            f"no cluster: {reason}: set KUBECONFIG to a kubeconfig, or run this in a pod"
        ) from error


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text
