"""What is known of one fleet, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from controller.kube.objects import Object


@dataclass(frozen=True, slots=True)
class Fleet:
    """A MoEFleet."""

    object: Object

    @property
    def namespace(self) -> str:
        return str(self.object["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.object["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.object["metadata"].get("generation", 0))

    @property
    def is_leaving(self) -> bool:
        return "deletionTimestamp" in self.object["metadata"]

    @property
    def age(self) -> tuple[str, str]:
        """Of two fleets of a namespace the one where this is less was first."""
        return self.object["metadata"].get("creationTimestamp", ""), self.name

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.object["spec"])

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.object.get("status", {}))

    @property
    def pool(self) -> str:
        return str(self.spec.get("pool") or f"{self.namespace}.{self.name}")

    @property
    def has_own_pool(self) -> bool:
        """Whether it is one of its namespace: no namespace's name has a dot."""
        return self.pool.startswith(f"{self.namespace}.")

    @property
    def reference(self) -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = self.spec["workload"].get("reference")
        return found

    @property
    def title(self) -> str:
        """Of what it is about, for sentences."""
        if self.reference is None:
            return "its selector"
        return f"{self.reference['kind']} {self.reference['name']}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the controller said of a pool.

    ledger:     its ledger's id
    pool:       fleet_pb2.Pool; None if no engine of it was ever seen
    policy:     policy_pb2.Policy; None if none was put
    plans:      placement_pb2.Plan by id, newest first
    unknown:    ids of plans that it does not have
    operations: fleet_pb2.Operation, newest first
    reported:   the ReportCapacityRequest that it was sent last by this operator
    refused:    why it refused calls, by their keys
    checked:    keys of dry runs that it did not refuse
    pool_of_pod:      fleet_pb2.Pool by the uid of each pod that a rank of it runs in, of all pools
    busy:       the operation that runs, of whatever pool; empty if none does
    away:       why it cannot be asked; then nothing else is known
    """

    ledger: str = ""
    pool: Any = None
    policy: Any = None
    plans: Mapping[str, Any] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()
    operations: Sequence[Any] = ()
    reported: Any = None
    refused: Mapping[str, str] = field(default_factory=dict)
    checked: frozenset[str] = frozenset()
    pool_of_pod: Mapping[str, Any] = field(default_factory=dict)
    busy: str = ""
    away: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """
    first:    the fleet that claimed the same before; None if none did
    selector: of the fleet's pods; empty if the workload is not there
    products: of the nodes that its pods are on, by name
    plans:    its PlacementPlans
    now:      unix seconds
    """

    fleet: Fleet
    seen: Seen
    now: float
    first: Fleet | None = None
    workload: Object | None = None
    selector: Mapping[str, Any] = field(default_factory=dict)
    pods: Sequence[Object] = ()
    products: Mapping[str, str] = field(default_factory=dict)
    plans: Sequence[Object] = ()

    def pool_of(self, pod: Object) -> Any:
        """Another pool than the fleet's, of which a pod is a rank; None if it is of none."""
        found = self.seen.pool_of_pod.get(pod["metadata"]["uid"])
        return None if found is None or found.name == self.fleet.pool else found

    @property
    def stray(self) -> str:
        """A pod that a rank of its pool runs in, where all of them run in pods that are not the
        fleet's; empty where they do not."""
        engines = self.seen.pool.engines if self.seen.pool is not None else ()
        ranks = {
            pod.pod_uid: pod.pod_name or pod.pod_uid
            for engine in engines for pod in engine.rank_pods if pod.pod_uid
        }  # fmt: skip
        mine = [pod["metadata"]["uid"] for pod in self.pods]
        return min(ranks.values(), default="") if mine and ranks.keys().isdisjoint(mine) else ""


@dataclass(frozen=True, slots=True)
class Call:
    """One of the controller's methods, such as "Approve". key: names what is asked for; a call that
    was refused is not made again under the same one"""

    method: str
    request: Any
    key: str


@dataclass(frozen=True, slots=True)
class Patch:
    """A JSON patch of a workload's replicas."""

    body: Sequence[Mapping[str, Any]]
    why: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    status:     of the fleet
    calls:      for the controller; after them all is asked once more
    plans:      ids of plans that should be objects
    statuses:   of PlacementPlans, by name
    obsolete:   PlacementPlans that nobody needs any more
    again_s:    when to look again, though nothing changed
    """

    status: dict[str, Any]
    calls: Sequence[Call] = ()
    patch: Patch | None = None
    plans: Sequence[Any] = ()
    statuses: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    obsolete: Sequence[Object] = ()
    again_s: float | None = None


def rfc3339(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
