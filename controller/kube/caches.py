"""All objects that are watched, and which fleets a change is about."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from controller.kube.cluster.api import Api
from controller.kube.cluster.informer import Informer, Name, name_of
from controller.kube.objects import (
    FLEETS,
    NODES,
    PLANS,
    PODS,
    TRIMS,
    WORKLOADS,
    Kind,
    Object,
)
from controller.kube.wanted.selectors import has, matches, selector_of
from controller.kube.wanted.world import Fleet
from placer.clock import Clock

ALL = ""  # as a namespace: every one
KINDS = {kind.name: kind for kind in WORKLOADS}
Claim: TypeAlias = tuple[str, ...]
SELECTOR = "selector"  # a claim of pods, which only those know whom it clashes with


class Caches:
    """wanted: told the namespace and name of each fleet that should be looked at"""

    def __init__(
        self, api: Api, namespaces: Sequence[str], clock: Clock, wanted: Callable[[Name], None]
    ) -> None:
        self._wanted = wanted
        self._claims: dict[Claim, set[Name]] = {}
        found = [
            Informer(api, kind, namespace, clock, self._changed, trim)
            for kind, trim in TRIMS.items()
            for namespace in ((namespaces or [ALL]) if kind.namespaced else [ALL])
        ]
        self._informers = found
        self._of: dict[Kind, list[Informer]] = {}
        for one in found:
            self._of.setdefault(one.kind, []).append(one)
        self.namespaces = frozenset(namespaces)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for one in self._informers:
                tasks.create_task(one.run())

    @property
    def unsynced(self) -> list[str]:
        """What is not known yet, and why."""
        return [
            f"{one.kind.plural} of {one.namespace or 'the cluster'}: {one.condition or 'listing'}"
            for one in self._informers
            if not one.synced
        ]

    def get(self, kind: Kind, name: Name) -> Object | None:
        for one in self._of[kind]:
            if (found := one.objects.get(name)) is not None:
                return found
        return None

    def put(self, kind: Kind, found: Object) -> None:
        """The answer to a write of ours."""
        namespace = found["metadata"].get("namespace", "")
        for one in self._of[kind]:
            if one.namespace in (ALL, namespace):
                one.put(found)

    def drop(self, kind: Kind, name: Name) -> None:
        for one in self._of[kind]:
            one.objects.pop(name, None)

    def all(self, kind: Kind, namespace: str = ALL) -> Iterator[Object]:
        for one in self._of[kind]:
            for (where, _), found in one.objects.items():
                if namespace in (ALL, where):
                    yield found

    def workload(self, fleet: Fleet) -> Object | None:
        if fleet.reference is None:
            return None
        kind = KINDS[fleet.reference["kind"]]
        return self.get(kind, (fleet.namespace, fleet.reference["name"]))

    def pods(self, fleet: Fleet, selector: Mapping[str, Any]) -> list[Object]:
        """Those that have not ended, as evicted ones have that nobody deletes."""
        if not selector:
            return []
        found = [
            pod for pod in self.all(PODS, fleet.namespace)
            if not pod["ended"] and has(fleet.spec, selector, pod)
        ]  # fmt: skip
        return sorted(found, key=name_of)

    def plans(self, fleet: Fleet) -> list[Object]:
        return [
            one for one in self.all(PLANS, fleet.namespace) if one["spec"]["fleet"] == fleet.name
        ]

    def products(self, pods: Sequence[Object]) -> dict[str, str]:
        nodes = ((name, self.get(NODES, ("", name))) for name in {pod["node"] for pod in pods})
        return {name: node["product"] for name, node in nodes if node is not None}

    def first(self, fleet: Fleet, pods: Sequence[Object]) -> Fleet | None:
        """Of those that claim the same pool, workload or pods the oldest, if that is not this."""
        exact = [claim for claim in claims(fleet) if claim[0] != SELECTOR]
        others = {name for claim in exact for name in self._claims.get(claim, ())}
        found = [Fleet(one) for name in others if (one := self.get(FLEETS, name)) is not None]
        for name in self._claims.get((SELECTOR, fleet.namespace), ()):
            if (one := self.get(FLEETS, name)) is not None and name not in others:
                selector = one["spec"]["workload"].get("selector") or {}
                if any(matches(selector, pod["metadata"].get("labels") or {}) for pod in pods):
                    found.append(Fleet(one))
        if fleet.reference is None:
            found += self._owners(fleet, pods)
        older = [one for one in found if one.age < fleet.age and one.uid != fleet.uid]
        return min(older, key=lambda one: one.age, default=None)

    def _owners(self, fleet: Fleet, pods: Sequence[Object]) -> list[Fleet]:
        """Fleets whose workload has some of these pods."""
        found = []
        for one in map(Fleet, self.all(FLEETS, fleet.namespace)):
            if one.reference is not None:
                selector = selector_of(one.spec, self.workload(one))
                if any(has(one.spec, selector, pod) for pod in pods):
                    found.append(one)
        return found

    def _changed(self, kind: Kind, before: Object | None, after: Object | None) -> None:
        known = after or before
        if known is None:
            return
        namespace, name = name_of(known)
        if kind is FLEETS:
            self._claim(before, after)
        elif kind is PLANS:
            self._wanted((namespace, known["spec"]["fleet"]))
        elif kind is NODES:
            for fleet in map(Fleet, self.all(FLEETS)):
                if (fleet.spec.get("topology") or {}).get("fromNodeLabels"):
                    self._wanted((fleet.namespace, fleet.name))
        elif kind is PODS:
            labels = [one["metadata"].get("labels") or {} for one in (before, after) if one]
            for fleet in map(Fleet, self.all(FLEETS, namespace)):
                selector = selector_of(fleet.spec, self.workload(fleet))
                if any(matches(selector, one) for one in labels):
                    self._wanted((fleet.namespace, fleet.name))
        else:
            for fleet in map(Fleet, self.all(FLEETS, namespace)):
                if refers(fleet) == (kind.name, name):
                    self._wanted((fleet.namespace, fleet.name))

    def _claim(self, before: Object | None, after: Object | None) -> None:
        """A fleet came, went or changed: whoever claims what it claims or claimed is asked."""
        for one in (before, after):
            if one is None:
                continue
            fleet = Fleet(one)
            name = (fleet.namespace, fleet.name)
            self._wanted(name)
            if before is None or after is None or before["spec"] != after["spec"]:
                rivals = set(self._claims.get((SELECTOR, fleet.namespace), ()))
                if fleet.reference is None:  # its pods may be anybody's
                    rivals.update(map(name_of, self.all(FLEETS, fleet.namespace)))
                for claim in claims(fleet):
                    claimed = self._claims.setdefault(claim, set())
                    rivals |= claimed
                    (claimed.add if one is after else claimed.discard)(name)
                for rival in rivals:
                    self._wanted(rival)


def claims(fleet: Fleet) -> list[Claim]:
    """What it says is its own. Nothing is shared by two namespaces."""
    pool = ("pool", fleet.namespace, fleet.pool)
    if fleet.reference is None:
        return [pool, (SELECTOR, fleet.namespace)]
    group = fleet.reference.get("workerGroup", "")
    return [pool, ("workload", fleet.namespace, *refers(fleet), group)]


def refers(fleet: Fleet) -> tuple[str, str]:
    """Kind and name of its workload; empty if it has a selector."""
    found = fleet.reference or {}
    return found.get("kind", ""), found.get("name", "")
