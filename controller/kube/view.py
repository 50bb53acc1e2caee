"""What the controller says of pools: what changed since, by its Watch, and where engines stand, by
asking every two seconds. Details of a pool are asked for when somebody looks at it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from controller.kube.known import Client, Known, maps, told
from controller.kube.wanted.policy import owner_of
from controller.kube.wanted.world import Call, Seen
from placer.channel import Settings, open_aio_channel
from placer.clock import Clock
from placer.errors import PlacerError
from placer.v1 import fleet_pb2, placement_pb2, policy_pb2

EVERY_S = 2.0
AWAY_S = 15.0  # of no answer, after which objects say so: a restart is no news
REOPENS_S = 10.0  # between two channels while nobody answers; each connects again by itself
OPTIONS = [
    ("grpc.max_receive_message_length", 2**25),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
NO_ROOM = "status: only "  # what the controller says where it left pools out
REFUSED_S = 30.0  # after which a call that was refused is made again
Code = grpc.StatusCode
REFUSALS = (
    Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED,
    Code.UNIMPLEMENTED, Code.DATA_LOSS,
)  # fmt: skip
SILENCE = (
    Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED,
)  # fmt: skip

log = logging.getLogger("placer.kube")


class UnansweredError(PlacerError):
    """The controller did not answer, or not as one: try again."""


class View:
    """changed: told of a pool by name, and of all by the empty name

    ledger: the id of the controller's
    away:   why the controller cannot be asked; empty while it can
    """

    def __init__(
        self, address: str, settings: Settings, clock: Clock, changed: Callable[[str], None]
    ) -> None:
        self._address, self._settings, self._clock = address, settings, clock
        self._changed = changed
        self.ledger = self.away = ""
        self._pools: dict[str, Known] = {}
        self._seats: dict[str, Any] = {}  # pools, by the uids of their pods
        self._cursor = 0
        self._watched = self._polled = False
        self._silent_since_s: float | None = None
        self._uptime_s = 0.0
        self._client = self._opened()

    @property
    def synced(self) -> bool:
        """Whether all that the controller knew at some moment is known; or that nobody answers."""
        return bool(self.away) or (self._watched and self._polled)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch())
            async for is_other in self._looks():
                if is_other:  # its watch may have begun where the one before was
                    watching.cancel()
                    watching = tasks.create_task(self._watch())

    async def close(self) -> None:
        await self._client.channel.close()

    async def seen(self, pool: str, plans: frozenset[str]) -> Seen:
        """plans: ids that somebody knows. Raises UnansweredError."""
        if self.away:
            return Seen(away=self.away)
        one = self._known(pool)
        try:
            await one.refresh(self._client, plans)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        if self._pools.get(pool) is not one:
            raise UnansweredError(f"another controller answers at {self._address}: look again")
        running = [one.pool.operation for one in self._pools.values() if one.pool is not None]
        busy = next((f"{of.id} ({of.kind}) of {of.pool}" for of in running if of.id), "")
        return one.seen(self.ledger, busy, self._seats, self._clock.monotonic())

    async def call(self, pool: str, call: Call) -> None:
        """What it answers, or why it refuses, is seen from then on. Raises UnansweredError."""
        one = self._known(pool)
        try:
            answer = await self._client.ask(call.method, call.request)
        except grpc.aio.AioRpcError as error:
            if error.code() is Code.ABORTED:  # somebody changed it: look again
                one.stale |= {"plan", "policy"}
            if error.code() not in REFUSALS:
                raise self._failed(error) from error
            why = " ".join(str(error.details()).split())
            one.refused[call.key] = why, self._clock.monotonic() + REFUSED_S
            log.warning("placer: %s of %s is refused: %s", call.method, pool, why)
        else:
            one.learn(call, answer)

    async def file(self, plan_id: str) -> bytes:
        """A plan's. Raises UnansweredError."""
        try:
            answer = await self._client.ask("Get", placement_pb2.GetRequest(plan_id=plan_id))
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        return bytes(answer.plan.file)

    def again_s(self, pool: str) -> float | None:
        """Until a call that was refused is made again."""
        due_s = min((at_s for _, at_s in self._known(pool).refused.values()), default=None)
        return None if due_s is None else max(due_s - self._clock.monotonic(), 0.1)

    def owned(self) -> list[tuple[str, tuple[str, str]]]:
        """Pools that a policy was put for by a fleet, and its namespace and name."""
        kept = [(pool, one.policy) for pool, one in self._pools.items() if one.policy is not None]
        return [
            (pool, owner)
            for pool, policy in kept
            if policy.policy and (owner := owner_of(policy.reason)) is not None
        ]

    def version(self, pool: str) -> int:
        """Of the policy that was put."""
        return int(self._known(pool).policy.version)

    def _known(self, pool: str) -> Known:
        return self._pools.setdefault(pool, Known(pool))

    def _opened(self) -> Client:
        self._opened_s = self._clock.monotonic()
        return Client(open_aio_channel(self._address, self._settings, OPTIONS))

    async def _read_policies(self) -> None:
        """All that are in force: of fleets that are gone, too."""
        answer = await self._client.ask("ListPolicies", policy_pb2.ListPoliciesRequest())
        for policy in answer.policies:
            self._known(policy.pool).policy = policy

    async def _watch(self) -> None:
        while True:
            try:
                await self._read_policies()
                request = placement_pb2.WatchRequest(cursor=self._cursor)
                async for answer in self._client.placement.Watch(request):
                    self._take(answer)
            except grpc.aio.AioRpcError as error:
                if error.code() is Code.OUT_OF_RANGE:
                    self._cursor, self._watched = 0, False
                    continue
                self._silent(str(self._failed(error)), error.code() in SILENCE)
            except PlacerError as error:  # of the channel, such as a token file that is not there
                self._silent(str(error))
            if self.away and self._clock.monotonic() - self._opened_s >= REOPENS_S:
                self._reopen()
            await self._clock.sleep(0.2 + self._clock.random.random())

    def _reopen(self) -> None:
        """The controller's authority may have been replaced, which a channel reads once. The one
        before closes when nobody has it any more: to close it would cancel whoever asks there."""
        try:
            self._client = self._opened()
        except PlacerError as error:
            log.warning("placer: %s", error)

    def _take(self, answer: Any) -> None:
        self._cursor = answer.cursor or self._cursor
        if answer.synced:
            self._watched = True
            self._changed("")
        elif answer.HasField("record"):
            record = answer.record
            one = self._known(record.pool)
            # Operations and acknowledgements say how far a plan is.
            plans = record.kind in ("plan", "operation", "acknowledgement")
            one.stale |= {record.kind, "plan"} if plans else {record.kind}
            if self._watched:
                self._changed(record.pool)

    async def _looks(self) -> AsyncIterator[bool]:
        """Whether it is another controller since the look before, one look after the other."""
        while True:
            try:
                answer = await self._client.ask("Status", fleet_pb2.StatusRequest())
                if any(one.startswith(NO_ROOM) for one in answer.conditions):
                    answer.pools.extend(await self._others({one.name for one in answer.pools}))
            except grpc.aio.AioRpcError as error:
                self._silent(str(self._failed(error)), error.code() in SILENCE)
            except PlacerError as error:
                self._silent(str(error))
            else:
                yield self._look(answer)
            await self._clock.sleep(EVERY_S)

    async def _others(self, told: set[str]) -> list[Any]:
        """Pools that had no room in an answer of all."""
        found = []
        for name in sorted(self._pools.keys() - told):
            try:
                answer = await self._client.ask("Status", fleet_pb2.StatusRequest(pool=name))
            except grpc.aio.AioRpcError as error:
                if error.code() is not Code.NOT_FOUND:
                    raise
            else:
                found += answer.pools
        return found

    def _look(self, answer: Any) -> bool:
        if self._silent_since_s is not None:
            log.warning("placer: the controller at %s answers", self._address)
        self._silent_since_s, was_away, self.away = None, self.away, ""
        is_other = self.ledger not in ("", answer.ledger_id)
        self.ledger = answer.ledger_id
        if is_other:  # nothing that was known is true of another controller
            self._pools.clear()
            self._cursor, self._watched = 0, False
        was_polled, self._polled = self._polled, True
        found = {pool.name: pool for pool in answer.pools}
        self._seats = {
            pod.pod_uid: pool
            for pool in answer.pools for engine in pool.engines for pod in engine.rank_pods
            if pod.pod_uid
        }  # fmt: skip
        for name in found.keys() | self._pools.keys():
            one, pool = self._known(name), found.get(name)
            before, one.pool = one.pool, pool
            if told(before) != told(pool):
                if maps(before) != maps(pool):
                    one.stale.add("plan")  # whose acknowledgements they are
                if _releasable(before) != _releasable(pool):
                    one.stale.add("operation")  # which says them; some only after it has ended
                if was_polled:
                    self._changed(name)
        is_new = answer.uptime_s < self._uptime_s
        self._uptime_s = answer.uptime_s
        if is_new:  # it forgot which pods there are
            for one in self._pools.values():
                one.reported = None
        if was_away or is_other or is_new:
            self._changed("")
        return is_other

    def _failed(self, error: grpc.aio.AioRpcError) -> UnansweredError:
        details = " ".join(str(error.details()).split())[:300]
        return UnansweredError(
            f"the controller at {self._address} answers {error.code().name}: {details}"
        )

    def _silent(self, why: str, is_away: bool = True) -> None:
        now_s = self._clock.monotonic()
        if self._silent_since_s is None:
            self._silent_since_s = now_s
            log.warning("placer: %s", why)
        if is_away and not self.away and now_s - self._silent_since_s >= AWAY_S:
            self.away = (
                f"no answer of the controller at {self._address}: does it run, and may the "
                "operator reach it? Nothing is lost, and all else here is as it was said last"
            )
            self._changed("")


def _releasable(pool: Any) -> list[str]:
    return [] if pool is None else list(pool.releasable_pods)
