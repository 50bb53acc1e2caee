"""The cluster's API: one request, its answer or an ApiError. Objects are dicts, as in JSON."""

import asyncio
import json
import logging
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import ClientResponse
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
TLS = (aiohttp.ClientSSLError, ssl.SSLError)
NO_CONFIG = (AttributeError, KeyError, TypeError, ValueError)

log = logging.getLogger("placer.kube")


class ApiError(PlacerError):
    """What the API server refused. status: HTTP's, 0: no answer; retry_after_s: as it asks"""

    def __init__(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s


class UntrustedError(ApiError):
    """Its certificate is not that of the authority that we know, or ours is not known to it."""


class ClusterError(PlacerError):
    """No cluster can be reached with the settings that there are."""


class Api:
    """Kubernetes' API server, by kubeconfig or as a pod. Who we are is read again when it says that
    it does not know us, and when we do not: tokens and certificates are replaced while this runs.
    """

    def __init__(self, identity: "Identity") -> None:
        self._identity, self._renewing = identity, asyncio.Lock()

    @classmethod
    async def open(cls) -> "Api":
        return cls(await Identity.read())

    async def close(self) -> None:
        await self._identity.close()

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
        try:
            async with self._send("GET", kind.path(namespace), query, None, "", limits) as response:
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        told = event["object"]
                        message = told.get("message", "the watch failed")
                        raise ApiError(told.get("code", 500), message)
                    yield event
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(0, f"the watch of {kind.plural} broke off: {error!r}") from error

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
        try:
            async with self._send(method, path, query or {}, body, content, limits) as response:
                return json.loads(await response.read())
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(0, f"the answer to {method} {path} broke off: {error!r}") from error

    @asynccontextmanager
    async def _send(self, method: str, path: str, *what: Any) -> AsyncIterator[ClientResponse]:
        """The answer, to be read; what the server refuses is raised."""
        for is_last in (False, True):
            identity = self._identity
            try:
                async with identity.send(method, path, *what) as response:
                    if response.status < 400:
                        yield response
                        return
                    if response.status != 401 or is_last:
                        raise await _refusal(response, f"{method} {path}")
            except UntrustedError:
                if is_last:
                    raise
            await self._renew(identity)

    async def _renew(self, refused: "Identity") -> None:
        """Once, for all whose requests were refused at the same time."""
        async with self._renewing:
            if self._identity is not refused:
                return
            log.warning("placer: the API server and we do not know each other: reading it again")
            try:
                self._identity = await Identity.read()
            except ClusterError as error:
                raise ApiError(401, str(error)) from error  # half written, it may be
            await refused.close()


class Identity:
    """Who we are to the API server, and the connections made as such. They are closed when the
    last answer has been read: aiohttp lets those who read from a closed session wait for ever."""

    def __init__(self, client: ApiClient) -> None:
        self._client, self._uses, self._ends = client, 0, False

    @classmethod
    async def read(cls) -> "Identity":
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
            return cls(ApiClient(settings))
        except (config.ConfigException, OSError, YAMLError, *NO_CONFIG) as error:
            reason = " ".join(str(error).split())
            raise ClusterError(
                f"no cluster: {reason}: set KUBECONFIG to a kubeconfig, or run this in a pod"
            ) from error

    async def close(self) -> None:
        self._ends = True
        if not self._uses:
            await self._client.close()  # type: ignore[no-untyped-call]

    @asynccontextmanager
    async def send(self, *what: Any) -> AsyncIterator[ClientResponse]:
        self._uses += 1
        try:
            with closing(await self._answer(*what)) as response:
                yield response
        finally:
            self._uses -= 1
            if self._ends:
                await self.close()

    async def _answer(
        self, method: str, path: str, query: Mapping[str, str], body: Any, content: str,
        limits: aiohttp.ClientTimeout,
    ) -> ClientResponse:  # fmt: skip
        client, headers = self._client, {"Accept": "application/json"}
        if content:
            headers["Content-Type"] = content
        url = client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            await client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            answer = await client.call_api(method, url, headers, body, _request_timeout=limits)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            kind = UntrustedError if isinstance(error, TLS) else ApiError
            raise kind(0, f"no answer to {method} {url}: {error!r}") from error
        return answer.response


async def _refusal(response: ClientResponse, what: str) -> ApiError:
    try:
        told = (await response.read()).decode(errors="replace")
    except (TimeoutError, aiohttp.ClientError, OSError):
        told = ""
    message = " ".join(_message(told).split())[:1000]
    after = response.headers.get("Retry-After", "")
    wait_s = float(after) if after.isdigit() else 0.0
    return ApiError(response.status, f"{what}: {message}", wait_s)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text
