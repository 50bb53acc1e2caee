"""A cache of all objects of a kind, held up to date by a list and a watch from there."""

import logging
from collections.abc import Callable
from typing import TypeAlias

from controller.kube.cluster.api import GONE, Api, ApiError
from controller.kube.objects import Kind, Object
from placer.clock import Clock

FIRST_S, LONGEST_S = 0.2, 20.0  # between two tries after a failure
UNKNOWN_S = 30.0  # between two looks for a kind that the cluster does not have
NOT_FOUND = 404

Name: TypeAlias = tuple[str, str]  # namespace and name
Changed: TypeAlias = Callable[[Kind, Object | None, Object | None], None]

log = logging.getLogger("placer.kube")


class Informer:
    """trim: what is kept of an object; where that stays the same, nothing has changed.

    objects: by namespace and name
    synced:  whether that is all there is, or was at some moment
    condition: what keeps it from the newest; empty if nothing does
    """

    def __init__(
        self, api: Api, kind: Kind, namespace: str, clock: Clock, changed: Changed,
        trim: Callable[[Object], Object],
    ) -> None:  # fmt: skip
        self._api, self.kind, self.namespace, self._clock = api, kind, namespace, clock
        self._changed, self._trim = changed, trim
        self.objects: dict[Name, Object] = {}
        self.synced, self.condition = False, ""
        self._version = ""  # up to which all is known; empty while nothing is
        self._written: dict[Name, Object] = {}  # while a list is under way

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                if not self._version:
                    await self._list()
                failures, self.condition = 0, ""
                async for event in self._api.watch(self.kind, self.namespace, self._version):
                    self._version = event["object"]["metadata"]["resourceVersion"]
                    self._take(event["type"], event["object"])
            except ApiError as error:
                if error.status == GONE:
                    self._version = ""
                    if not self.condition:  # once: a server that answers so for ever is not hurried
                        self.condition = str(error)
                        continue
                if error.status == NOT_FOUND:
                    self._become({})
                    self.synced, self._version = True, ""
                    await self._clock.sleep(UNKNOWN_S)
                    continue
                if str(error) != self.condition and error.status:
                    log.warning("placer: %s: trying again", error)
                self.condition, failures = str(error), failures + 1
                backoff_s = min(FIRST_S * 2 ** (failures - 1), LONGEST_S)
                lot = 0.5 + self._clock.random.random() / 2
                await self._clock.sleep(max(error.retry_after_s, backoff_s * lot))

    def put(self, found: Object) -> None:
        """What the server answered to a write of ours: our own are never news. What the watch is
        past already is known as it came to be, or is gone."""
        name, trimmed = name_of(found), self._trim(found)
        before = self.objects.get(name)
        known = 0 if before is None else version_of(before)
        if version_of(trimmed) > max(int(self._version or 0), known):
            self.objects[name] = trimmed
            if not self._version:
                self._written[name] = trimmed

    async def _list(self) -> None:
        found: dict[Name, Object] = {}
        self._written, version = {}, ""
        async for page in self._api.list_pages(self.kind, self.namespace):
            version = page["metadata"]["resourceVersion"]
            for one in page["items"]:
                found[name_of(one)] = self._trim(one)
        later = {key: one for key, one in self._written.items() if version_of(one) > int(version)}
        self._become(found | later)
        self.synced, self._version = True, version

    def _become(self, found: dict[Name, Object]) -> None:
        before, self.objects = self.objects, found
        for name in before.keys() | found.keys():
            self._tell(before.get(name), found.get(name))

    def _take(self, what: str, found: Object) -> None:
        if what == "BOOKMARK":
            return
        name = name_of(found)
        before = self.objects.get(name)
        if what == "DELETED":
            self.objects.pop(name, None)
            self._tell(before, None)
            return
        trimmed = self._trim(found)
        if before is not None and version_of(trimmed) < version_of(before):
            return  # older than the answer to a write of ours
        self.objects[name] = trimmed
        self._tell(before, trimmed)

    def _tell(self, before: Object | None, after: Object | None) -> None:
        if _without_version(before) != _without_version(after):
            self._changed(self.kind, before, after)


def name_of(found: Object) -> Name:
    meta = found["metadata"]
    return meta.get("namespace", ""), meta["name"]


def version_of(found: Object) -> int:
    """Versions of one kind can be compared: KEP 5504."""
    return int(found["metadata"].get("resourceVersion") or 0)


def _without_version(found: Object | None) -> Object | None:
    if found is None:
        return None
    meta = {key: value for key, value in found["metadata"].items() if key != "resourceVersion"}
    return {**found, "metadata": meta}
