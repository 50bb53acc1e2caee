"""An API server of one kind, in memory: its lists, its watches, and what it refuses."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from controller.kube.cluster.api import ApiError


class TinyApi:
    """
    refuses: errors for the next requests, one each; None lets one through
    page_s:  that each page of a list takes
    asked:   what was asked for, in turn
    """

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.version = 0
        self.refuses: list[ApiError | None] = []
        self.page_s = 0.0
        self.asked: list[str] = []
        self._streams: list[asyncio.Queue[Any]] = []

    def put(self, name: str, **spec: Any) -> Any:
        self.version += 1
        kind = "MODIFIED" if name in self.objects else "ADDED"
        meta = {"name": name, "namespace": "moe", "resourceVersion": str(self.version)}
        self.objects[name] = {"metadata": meta, "spec": spec}
        self._tell(kind, self.objects[name])
        return self.objects[name]

    def remove(self, name: str) -> None:
        self.version += 1
        gone = self.objects.pop(name)
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._tell("DELETED", gone)

    def bookmark(self) -> None:
        meta = {"name": "", "resourceVersion": str(self.version)}
        self._tell("BOOKMARK", {"metadata": meta})

    def end(self, error: ApiError | None = None) -> None:
        """All watches: by an error, or as servers do after some minutes."""
        for stream in self._streams:
            stream.put_nowait(error)

    async def list_pages(self, kind: Any, namespace: str) -> AsyncIterator[Any]:
        self._ask("list")
        meta = {"resourceVersion": str(self.version)}
        for one in list(self.objects.values()) or [None]:
            await asyncio.sleep(self.page_s)
            yield {"metadata": meta, "items": [one] if one else []}

    async def watch(self, kind: Any, namespace: str, version: str) -> AsyncIterator[Any]:
        self._ask(f"watch from {version}")
        stream: asyncio.Queue[Any] = asyncio.Queue()
        self._streams.append(stream)
        try:
            while isinstance(event := await stream.get(), dict):
                yield event
            if event is not None:
                raise event
        finally:
            self._streams.remove(stream)

    async def get(self, kind: Any, namespace: str, name: str) -> Any:
        self._ask("get")
        if name not in self.objects:
            raise ApiError(404, "not found")
        return self.objects[name]

    async def create(self, kind: Any, namespace: str, body: Any) -> Any:
        self._ask("create")
        if body["metadata"]["name"] in self.objects:
            raise ApiError(409, "exists")
        return self.put(body["metadata"]["name"], **body["spec"])

    async def replace(self, kind: Any, namespace: str, name: str, body: Any) -> Any:
        self._ask("replace")
        if name not in self.objects:
            raise ApiError(404, "not found")
        if self.objects[name]["metadata"] != body["metadata"]:
            raise ApiError(409, "changed")
        return self.put(name, **body["spec"])

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.refuses and (error := self.refuses.pop(0)) is not None:
            raise error

    def _tell(self, kind: str, found: Any) -> None:
        for stream in self._streams:
            stream.put_nowait({"type": kind, "object": found})
