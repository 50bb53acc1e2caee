"""What is known of the controller, while it goes, comes back, or is another one."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import grpc
import pytest

from controller.kube import view as viewing
from controller.kube.view import UnansweredError, View
from placer.channel import Settings
from placer.clock import SystemClock
from placer.v1 import fleet_pb2
from tests.kube.stand_in import StandIn, serving

# gRPC names methods as protos do.
# ruff: noqa: N802
POOL = "moe.chat"


class Slow(StandIn):
    """It waits before it answers List, if it is told to, and may refuse watches."""

    def __init__(self, ledger: str = "ledger-1") -> None:
        super().__init__(ledger)
        self.waits, self.is_asked = threading.Event(), threading.Event()
        self.waits.set()
        self.refuses_watches, self.watches = False, 0

    def List(self, request: Any, context: Any) -> Any:
        if not self.waits.is_set():
            self.is_asked.set()
            self.waits.wait(20)
        return super().List(request, context)

    def Watch(self, request: Any, context: Any) -> Any:
        if self.refuses_watches:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        self.watches += 1
        for answer in super().Watch(request, context):
            if self.refuses_watches:
                return
            yield answer


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


def looking(address: str, test: Callable[[View, list[str]], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        news: list[str] = []
        view = View(address, Settings(), SystemClock(), news.append)
        task = asyncio.create_task(view.run())
        await until(lambda: view.synced)
        await test(view, news)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await view.close()

    asyncio.run(run())


def test_what_is_being_asked_is_answered_though_the_channel_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(viewing, "AWAY_S", 0.0)
    monkeypatch.setattr(viewing, "REOPENS_S", 0.0)
    stand_in = Slow()
    stand_in.pool(POOL, "tiny", ["pod-0"])

    async def test(view: View, news: list[str]) -> None:
        before = weakref.ref(view._client.channel)
        plan = stand_in.propose(POOL)
        with stand_in._changed:
            stand_in._write("operation", "op-1", POOL)
        await until(lambda: news.count(POOL) == 2)
        stand_in.waits.clear()
        asked = asyncio.create_task(view.seen(POOL, frozenset()))
        await until(stand_in.is_asked.is_set)
        stand_in.refuses_watches = True
        stand_in.become(plan, plan.state)  # which ends the watch under way
        await until(lambda: view._client.channel is not before())
        await asyncio.sleep(0.2)
        stand_in.waits.set()
        async with asyncio.timeout(20):
            assert list((await asked).plans) == [plan.id]
        del asked
        gc.collect()
        assert before() is None  # so that its connections are closed

    with serving(stand_in) as address:
        looking(address, test)


def test_who_is_away_is_called_on_one_channel_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "AWAY_S", 0.0)
    stand_in = Slow()

    async def test(view: View, _: list[str]) -> None:
        client = view._client
        stand_in.refuses_watches = True
        stand_in.away()
        await until(lambda: view.away)
        stand_in.serve(int(address.rpartition(":")[2]))
        await until(lambda: not view.away)
        assert view._client is client

    with serving(stand_in) as address:
        looking(address, test)


def test_all_of_another_controller_is_told_though_its_watch_began_before_that_was_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(viewing, "EVERY_S", 3.0)
    first, second = Slow(), Slow("ledger-2")
    for one in (first, second):
        one.pool(POOL, "tiny", ["pod-0"])
    for _ in range(3):
        second.propose(POOL)

    async def test(view: View, news: list[str]) -> None:
        first.away()
        second.serve(int(address.rpartition(":")[2]))
        await until(lambda: second.watches)
        assert view.ledger == "ledger-1"
        await until(lambda: view.ledger == "ledger-2")
        await until(lambda: view.synced)
        assert list((await view.seen(POOL, frozenset())).plans) == ["plan-3", "plan-2", "plan-1"]
        news.clear()
        second.propose(POOL)
        await until(lambda: POOL in news)

    with serving(first) as address:
        looking(address, test)
        second.away()


def test_answers_of_two_controllers_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "EVERY_S", 3.0)
    first, second = Slow(), Slow("ledger-2")
    for one in (first, second):
        one.pool(POOL, "tiny", ["pod-0"])

    async def test(view: View, _: list[str]) -> None:
        first.propose(POOL)
        await until(lambda: view._pools[POOL].stale)
        first.away()
        second.waits.clear()
        second.serve(int(address.rpartition(":")[2]))
        await until(lambda: second.watches)
        asked = asyncio.create_task(view.seen(POOL, frozenset()))
        await until(second.is_asked.is_set)
        await until(lambda: view.ledger == "ledger-2")
        second.waits.set()
        with pytest.raises(UnansweredError, match="another"):
            await asked

    with serving(first) as address:
        looking(address, test)
        second.away()


def test_pods_that_an_operation_released_are_known_though_they_are_only_after_its_end() -> None:
    stand_in = StandIn()
    stand_in.pool(POOL, "tiny", ["pod-0", "pod-1"])

    async def test(view: View, news: list[str]) -> None:
        request = fleet_pb2.ScaleToRequest(pool=POOL, ranks=1)
        with stand_in._changed:
            operation = stand_in._begin(request)
            operation.phase = fleet_pb2.OPERATION_PHASE_SUCCEEDED
        await until(lambda: POOL in news)
        [found] = (await view.seen(POOL, frozenset())).operations
        assert not found.released_pods
        news.clear()
        with stand_in._changed:  # as the controller knows that nobody hears of the rank any more
            operation.released_pods.append("pod-1")
            stand_in.pools[POOL].releasable_pods.append("pod-1")
        await until(lambda: POOL in news)
        [found] = (await view.seen(POOL, frozenset())).operations
        assert found.released_pods == ["pod-1"]

    with serving(stand_in) as address:
        looking(address, test)
