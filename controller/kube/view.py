"""What the controller says of pools: what changed since, by its Watch, and where engines stand, by
asking every few seconds. Details of a pool are asked for when somebody looks at it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from controller.kube.wanted.policy import owner_of
from controller.kube.wanted.reconcile import ACTS
from controller.kube.wanted.world import Call, Seen
from placer.channel import Settings, open_aio_channel
from placer.clock import Clock
from placer.errors import PlacerError
from placer.v1 import fleet_pb2, placement_pb2, policy_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from placer.v1.policy_pb2_grpc import PolicyServiceStub

EVERY_S = 1.0  # between two looks at where engines stand
ANSWER_S = 10.0
AWAY_S = 15.0  # of no answer, after which objects say so: a restart is no news
REFUSED_S = 30.0  # after which a call that was refused is made again
PLANS, OPERATIONS = 20, 5  # of a pool that are looked at, the newest
OPTIONS = [
    ("grpc.max_receive_message_length", 2**25),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
Code = grpc.StatusCode
REFUSALS = (
    Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED,
    Code.UNIMPLEMENTED, Code.DATA_LOSS,
)  # fmt: skip
DETAILED = (
    placement_pb2.PLAN_STATE_APPLYING, placement_pb2.PLAN_STATE_APPLIED,
    placement_pb2.PLAN_STATE_HALTED,
)  # fmt: skip

log = logging.getLogger("placer.kube")


class UnansweredError(PlacerError):
    """The controller did not answer, or not as one: try again."""


@dataclass(slots=True)
class _Known:
    """Of a pool. stale: kinds of records that changed since they were asked for"""

    pool: Any = None
    policy: Any = None
    plans: dict[str, Any] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    operations: list[Any] = field(default_factory=list)
    reported: Any = None
    refused: dict[str, tuple[str, float]] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)


class View:
    """changed: told of a pool by name, and of all by the empty name

    synced: whether all that the controller knew at some moment is known; or that nobody answers
    """

    def __init__(
        self, address: str, settings: Settings, clock: Clock, changed: Callable[[str], None]
    ) -> None:
        self.address, self._settings, self._clock = address, settings, clock
        self._changed = changed
        self.ledger, self.away = "", ""
        self._pools: dict[str, _Known] = {}
        self._cursor = 0
        self._watched = self._polled = False
        self._silent_since_s: float | None = None
        self._open()

    @property
    def synced(self) -> bool:
        return bool(self.away) or (self._watched and self._polled)

    def policies_of_fleets(self) -> list[tuple[str, str]]:
        """Namespace and name of those that a policy was put for."""
        kept = [one.policy for one in self._pools.values() if one.policy is not None]
        return [found for one in kept if one.policy and (found := owner_of(one.reason))]

    def pools_of(self, namespace: str, name: str) -> list[str]:
        return [
            pool for pool, one in self._pools.items()
            if one.policy is not None and one.policy.policy
            and owner_of(one.policy.reason) == (namespace, name)
        ]  # fmt: skip

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._poll())

    async def close(self) -> None:
        await self._channel.close()

    async def seen(self, pool: str, plans: frozenset[str]) -> Seen:
        """plans: ids that somebody knows. Raises UnansweredError."""
        if self.away:
            return Seen(away=self.away)
        one = self._known(pool)
        try:
            await self._refresh(pool, one, plans)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        now_s = self._clock.monotonic()
        one.refused = {key: kept for key, kept in one.refused.items() if kept[1] > now_s}
        return Seen(
            ledger=self.ledger, pool=one.pool, policy=one.policy, plans=dict(one.plans),
            unknown=frozenset(one.unknown), operations=tuple(one.operations),
            reported=one.reported, refused={key: why for key, (why, _) in one.refused.items()},
        )  # fmt: skip

    async def call(self, pool: str, call: Call) -> None:
        """What it answers, or why it refuses, is seen from then on. Raises UnansweredError."""
        one = self._known(pool)
        try:
            answer = await getattr(self, f"_{call.method}")(call.request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is Code.ABORTED:  # somebody changed it: look again
                one.stale |= {"plan", "policy"}
            if error.code() not in REFUSALS:
                raise self._failed(error) from error
            why = " ".join(str(error.details()).split())
            one.refused[call.key] = why, self._clock.monotonic() + REFUSED_S
            log.warning("placer: %s of %s is refused: %s", call.method, pool, why)
            return
        self._learn(one, call, answer)

    async def moves(self, plan_id: str) -> bytes:
        """A plan's file."""
        try:
            request = placement_pb2.GetRequest(plan_id=plan_id)
            return bytes((await self._Get(request, timeout=ANSWER_S)).plan.file)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error

    def _learn(self, one: _Known, call: Call, answer: Any) -> None:
        request = call.request
        if call.method == "PutPolicy":
            one.policy = policy_pb2.Policy(
                pool=request.pool, policy=answer.policy or request.policy, version=answer.version,
                reason=request.reason,
            )  # fmt: skip
        elif call.method == "DeletePolicy":
            one.policy = policy_pb2.Policy(pool=request.pool, version=answer.version)
        elif call.method in ("Approve", "Reject"):
            one.plans[answer.plan.id] = answer.plan
        elif call.method == "ReportCapacity":
            one.reported = request
        elif call.method == "ScaleTo":
            one.stale.add("operation")

    def _open(self) -> None:
        self._channel = open_aio_channel(self.address, self._settings, OPTIONS)
        placement, fleet = PlacementServiceStub(self._channel), FleetServiceStub(self._channel)
        policy = PolicyServiceStub(self._channel)
        self._Watch, self._List, self._Get = placement.Watch, placement.List, placement.Get
        self._Approve, self._Reject = placement.Approve, placement.Reject
        self._Status, self._Operations = fleet.Status, fleet.Operations
        self._ScaleTo, self._ReportCapacity = fleet.ScaleTo, fleet.ReportCapacity
        self._PutPolicy, self._DeletePolicy = policy.PutPolicy, policy.DeletePolicy
        self._ListPolicies = policy.ListPolicies

    def _known(self, pool: str) -> _Known:
        return self._pools.setdefault(pool, _Known())

    async def _refresh(self, pool: str, one: _Known, plans: frozenset[str]) -> None:
        if "policy" in one.stale:
            await self._read_policies()
        if "plan" in one.stale or plans - one.plans.keys() - one.unknown:
            one.stale.discard("plan")
            try:
                await self._read_plans(pool, one, plans)
            except BaseException:
                one.stale.add("plan")
                raise
        if "operation" in one.stale:
            one.stale.discard("operation")
            try:
                request = fleet_pb2.OperationsRequest(pool=pool, limit=OPERATIONS)
                answer = await self._Operations(request, timeout=ANSWER_S)
            except BaseException:
                one.stale.add("operation")
                raise
            one.operations = list(answer.operations)

    async def _read_plans(self, pool: str, one: _Known, plans: frozenset[str]) -> None:
        request = placement_pb2.ListRequest(pool=pool, limit=PLANS)
        found = {plan.id: plan for plan in (await self._List(request, timeout=ANSWER_S)).plans}
        unknown = set()
        wanted = [id for id, plan in found.items() if plan.state in DETAILED]
        for id in {*wanted, *(plans - found.keys())}:
            try:
                asked = placement_pb2.GetRequest(plan_id=id)
                plan = (await self._Get(asked, timeout=ANSWER_S)).plan
            except grpc.aio.AioRpcError as error:
                if error.code() is not Code.NOT_FOUND:
                    raise
                unknown.add(id)
            else:
                plan.ClearField("file")
                found[id] = plan
        one.plans, one.unknown = found, unknown

    async def _read_policies(self) -> None:
        answer = await self._ListPolicies(policy_pb2.ListPoliciesRequest(), timeout=ANSWER_S)
        found = {policy.pool: policy for policy in answer.policies}
        for pool, one in self._pools.items():
            if "policy" in one.stale and pool not in found and one.policy is not None:
                one.policy = policy_pb2.Policy(pool=pool, version=one.policy.version)
            one.stale.discard("policy")
        for pool, policy in found.items():
            self._known(pool).policy = policy

    async def _watch(self) -> None:
        while True:
            try:
                if not self._watched:
                    await self._read_policies()
                request = placement_pb2.WatchRequest(cursor=self._cursor)
                async for answer in self._Watch(request):
                    self._take(answer)
            except grpc.aio.AioRpcError as error:
                if error.code() is Code.OUT_OF_RANGE:
                    self._cursor, self._watched = 0, False
                    continue
                self._failed(error)
            except PlacerError as error:  # of the channel: its token cannot be read
                self._silent(str(error))
            await self._clock.sleep(0.2 + self._clock.random.random())

    def _take(self, answer: Any) -> None:
        self._cursor = answer.cursor or self._cursor
        if answer.synced:
            self._watched = True
            self._changed("")
        elif answer.HasField("record"):
            record = answer.record
            kind = "plan" if record.kind == "acknowledgement" else record.kind
            if kind == "operation" and record.pool:
                self._known(record.pool).stale.add("plan")  # which it is about
            self._known(record.pool).stale.add(kind)
            if self._watched:
                self._changed(record.pool)

    async def _poll(self) -> None:
        while True:
            try:
                answer = await self._Status(fleet_pb2.StatusRequest(), timeout=ANSWER_S)
            except grpc.aio.AioRpcError as error:
                self._failed(error)
            except PlacerError as error:
                self._silent(str(error))
            else:
                self._look(answer)
            await self._clock.sleep(EVERY_S)

    def _look(self, answer: Any) -> None:
        self._silent_since_s = None
        was_away, self.away = self.away, ""
        is_new = self.ledger not in ("", answer.ledger_id)
        self.ledger = answer.ledger_id
        if is_new:  # another controller: nothing that was known is true of it
            self._pools.clear()
            self._cursor, self._watched = 0, False
        was_polled, self._polled = self._polled, True
        found = {pool.name: pool for pool in answer.pools}
        for name in found.keys() | self._pools.keys():
            one, pool = self._known(name), found.get(name)
            if _told(one.pool) != _told(pool):
                if _maps(one.pool) != _maps(pool):
                    one.stale.add("plan")  # whose acknowledgements they are
                one.pool = pool
                if was_polled:
                    self._changed(name)
            else:
                one.pool = pool
        if was_away or is_new:
            self._changed("")

    def _failed(self, error: grpc.aio.AioRpcError) -> UnansweredError:
        details = " ".join(str(error.details()).split())
        why = f"the controller at {self.address} answers {error.code().name}: {details}"
        if error.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNAUTHENTICATED,
                            Code.PERMISSION_DENIED):  # fmt: skip
            self._silent(f"no answer of the controller at {self.address}: {error.code().name}")
        return UnansweredError(why)

    def _silent(self, why: str) -> None:
        now_s = self._clock.monotonic()
        if self._silent_since_s is None:
            self._silent_since_s = now_s
            log.warning("placer: %s", why)
        if not self.away and now_s - self._silent_since_s >= AWAY_S:
            self.away = f"{why}: all stays as it was said last"
            self._changed("")
            with suppress(PlacerError):  # its authority may have been replaced
                old, _ = self._channel, self._open()
                asyncio.ensure_future(old.close())


def _told(pool: Any) -> Any:
    """Of a pool what objects say, without what changes all the time."""
    if pool is None:
        return None
    about = pool.reason.partition(":")[0] if pool.outcome in ACTS else ""
    return (
        pool.model, pool.outcome, about,
        round(pool.balancedness, 2), pool.applied_plan, pool.proposed_plan, _maps(pool),
        pool.stock.SerializeToString(deterministic=True), tuple(pool.releasable_pods),
        pool.operation.id, pool.operation.phase, pool.operation.progress.partition(",")[0],
    )  # fmt: skip


def _maps(pool: Any) -> Any:
    """Where its engines stand."""
    if pool is None:
        return None
    return tuple(
        (one.name, one.digest, one.epoch, one.ranks, one.slots,
         tuple((seat.rank, seat.pod_uid, seat.node) for seat in one.seats))
        for one in pool.engines
    )  # fmt: skip
