"""What is known of one pool, and the questions that fill it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from controller.kube.wanted.news import about
from controller.kube.wanted.world import Call, Seen
from placer.v1 import fleet_pb2, placement_pb2, policy_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.policy_pb2_grpc import PolicyServiceStub

ANSWER_S = 10.0
PLANS, OPERATIONS = 20, 5  # of a pool that are looked at, the newest
# Those whose ranks' acknowledgements are told.
DETAILED = (
    placement_pb2.PLAN_STATE_APPLYING,
    placement_pb2.PLAN_STATE_APPLIED,
    placement_pb2.PLAN_STATE_HALTED,
)


class Client:
    """The controller's methods."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.placement = PlacementServiceStub(channel)
        self.fleet = FleetServiceStub(channel)
        self.policy = PolicyServiceStub(channel)

    async def ask(self, method: str, request: Any) -> Any:
        services = (self.placement, self.fleet, self.policy)
        stub = next(found for one in services if (found := getattr(one, method, None)))
        return await stub(request, timeout=ANSWER_S)


@dataclass(slots=True)
class Known:
    """stale: kinds of records that changed since they were asked for; refused: by a call's key,
    why, and until when that is not asked again"""

    name: str
    pool: Any = None
    policy: Any = None
    plans: dict[str, Any] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    operations: list[Any] = field(default_factory=list)
    reported: Any = None
    refused: dict[str, tuple[str, float]] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)
    stale: set[str] = field(default_factory=set)

    def seen(self, ledger: str, busy: str, pool_of_pod: Mapping[str, Any], now_s: float) -> Seen:
        self.refused = {key: kept for key, kept in self.refused.items() if kept[1] > now_s}
        return Seen(
            ledger=ledger, pool=self.pool, policy=self.policy, plans=dict(self.plans),
            unknown=frozenset(self.unknown), operations=tuple(self.operations),
            reported=self.reported, refused={key: why for key, (why, _) in self.refused.items()},
            checked=frozenset(self.checked), pool_of_pod=pool_of_pod, busy=busy,
        )  # fmt: skip

    async def refresh(self, client: Client, wanted: frozenset[str]) -> None:
        """wanted: ids of plans that somebody knows. What fails stays stale."""
        if "policy" in self.stale:
            self.stale.discard("policy")  # what changes meanwhile is asked for again
            try:
                asked = policy_pb2.GetPolicyRequest(pool=self.name)
                kept = await client.ask("GetPolicy", asked)
            except BaseException:
                self.stale.add("policy")
                raise
            self.policy = policy_pb2.Policy(
                pool=self.name, policy=kept.policy, version=kept.version, reason=kept.reason
            )
        if "plan" in self.stale or wanted - self.plans.keys() - self.unknown:
            self.stale.discard("plan")
            try:
                self.plans, self.unknown = await self._plans(client, wanted)
            except BaseException:
                self.stale.add("plan")
                raise
        if "operation" in self.stale:
            self.stale.discard("operation")
            try:
                request = fleet_pb2.OperationsRequest(pool=self.name, limit=OPERATIONS)
                self.operations = list((await client.ask("Operations", request)).operations)
            except BaseException:
                self.stale.add("operation")
                raise

    def learn(self, call: Call, answer: Any) -> None:
        """What a call's answer says, before the controller's streams do."""
        request = call.request
        if call.method == "PutPolicy":
            self.policy = policy_pb2.Policy(
                pool=self.name, policy=answer.policy or request.policy, version=answer.version,
                reason=request.reason,
            )  # fmt: skip
        elif call.method == "DeletePolicy":
            self.policy = policy_pb2.Policy(pool=self.name, version=answer.version)
        elif call.method in ("Approve", "Reject"):
            self.plans[answer.plan.id] = answer.plan
        elif call.method == "ReportCapacity":
            self.reported = request
            if self.pool is not None:
                self.pool.stock.CopyFrom(answer.stock)
        elif call.method == "ScaleTo" and request.dry_run:
            self.checked.add(call.key)
        elif call.method == "ScaleTo":
            before = [one for one in self.operations if one.id != answer.operation.id]
            self.operations = [answer.operation, *before]

    async def _plans(
        self, client: Client, wanted: frozenset[str]
    ) -> tuple[dict[str, Any], set[str]]:
        request = placement_pb2.ListRequest(pool=self.name, limit=PLANS)
        found = {plan.id: plan for plan in (await client.ask("List", request)).plans}
        detailed = {id for id, plan in found.items() if plan.state in DETAILED}
        unknown: set[str] = set()
        for id in (*sorted(detailed), *sorted(wanted - found.keys())):
            try:
                answer = await client.ask("Get", placement_pb2.GetRequest(plan_id=id))
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                unknown.add(id)
            else:
                answer.plan.ClearField("file")
                found[id] = answer.plan
        return found, unknown


def told(pool: Any) -> Any:
    """Of a fleet_pb2.Pool what objects say, without what changes all the time."""
    if pool is None:
        return None
    return (
        pool.model, pool.outcome, about(pool.outcome, pool.reason), round(pool.balancedness, 2),
        pool.applied_plan, pool.proposed_plan, maps(pool),
        pool.stock.SerializeToString(deterministic=True), tuple(pool.releasable_pods),
        pool.operation.id, pool.operation.phase, pool.operation.progress.partition(",")[0],
    )  # fmt: skip


def maps(pool: Any) -> Any:
    """Where its engines stand, and on what."""
    if pool is None:
        return None
    return tuple(
        (
            one.name, one.digest, one.epoch, one.ranks, one.slots,
            tuple((pod.rank, pod.pod_uid, pod.node) for pod in one.rank_pods),
        )
        for one in pool.engines
    )  # fmt: skip
